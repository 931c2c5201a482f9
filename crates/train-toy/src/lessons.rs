//! What the model learns from: documents of sentences, as tensors of tokens.

use rand::seq::IndexedRandom;
use rand::Rng;
use tch::Tensor;
use tch_lens::{Result, Tokenizer};

use crate::language::{sentence, Split, Task};
use crate::vocabulary::BOS_ID;

/// A part of the training.
pub struct Stage {
    /// When it begins, as a share of all steps.
    pub from: f64,
    /// The kinds of sentences.
    pub tasks: &'static [Task],
    /// How many documents a step sees.
    pub documents: usize,
    /// How long a document is, in tokens.
    pub length: usize,
    /// How much a word counts that repeats a span: each of them is an answer, and there are many.
    pub repeated: f32,
}

/// How much the answer of any other sentence counts. A word that is no answer counts 1.
const ANSWER: f32 = 8.0;

/// What the model learns from in one step.
pub struct Lesson {
    pub tokens: Tensor,  // [document, pos]
    pub targets: Tensor, // [document, pos], the token after each
    pub weights: Tensor, // [document, pos], how much each target counts: nothing behind a document's last sentence
}

impl Stage {
    /// Documents at random.
    pub fn lesson(&self, tokenizer: &Tokenizer, rng: &mut impl Rng) -> Result<Lesson> {
        let (mut tokens, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.documents {
            let document = self.document(tokenizer, rng)?;
            for pair in document.windows(2) {
                tokens.push(pair[0].id);
                targets.push(pair[1].id);
                weights.push(pair[1].weight);
            }
        }
        let shape = [self.documents as i64, self.length as i64];
        Ok(Lesson {
            tokens: Tensor::from_slice(&tokens).view(shape),
            targets: Tensor::from_slice(&targets).view(shape),
            weights: Tensor::from_slice(&weights).view(shape),
        })
    }

    /// BOS, whole sentences one after the other, and padding; or one sentence that is longer, and is cut. One token
    /// more than the stage's length, as the last is a target only.
    fn document(&self, tokenizer: &Tokenizer, rng: &mut impl Rng) -> Result<Vec<Target>> {
        let end = Target { id: BOS_ID, weight: 0.0 };
        let mut document = vec![end];
        loop {
            let next = self.sentence(tokenizer, document.len() == 1, rng)?;
            if document.len() > 1 && document.len() + next.len() > self.length + 1 {
                break;
            }
            document.extend(next);
        }
        document.resize(self.length + 1, end);
        Ok(document)
    }

    fn sentence(&self, tokenizer: &Tokenizer, first: bool, rng: &mut impl Rng) -> Result<Vec<Target>> {
        let task = *self.tasks.choose(rng).expect("a stage has tasks");
        let sentence = sentence(task, Split::Train, rng);
        let space = if first || sentence.prompt.starts_with(' ') { "" } else { " " };
        let prompt = tokenizer.encode(&format!("{space}{}", sentence.prompt), false)?;
        let rest = tokenizer.encode(&sentence.rest, false)?;
        let (answers, weight) = match task {
            Task::Repetition => (rest.len() - 1, self.repeated),
            _ => (1, ANSWER),
        };
        let answers = prompt.len()..prompt.len() + answers;
        let weigh = |(pos, id)| Target { id, weight: if answers.contains(&pos) { weight } else { 1.0 } };
        Ok(prompt.into_iter().chain(rest).enumerate().map(weigh).collect())
    }
}

#[derive(Clone, Copy)]
struct Target {
    id: i64,
    weight: f32,
}
