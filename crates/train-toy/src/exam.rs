//! Questions that the training never showed, and how many of them a model answers.

use rand::rngs::StdRng;
use rand::SeedableRng;
use tch::{Kind, Tensor};
use tch_lens::{HookedTransformer, Result};

use super::language::{sentence, Split, Task};

/// How a model did in one kind of sentences, as shares of the questions.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// The most probable token was a right one.
    pub right: f64,
    /// The mean probability of the right tokens, together.
    pub probability: f64,
}

/// Asks a model `questions` held-out questions, the same ones every time.
pub fn examine(model: &HookedTransformer, task: Task, questions: usize) -> Result<Mark> {
    let mut rng = StdRng::seed_from_u64(2024);
    let (mut right, mut probability) = (0.0, 0.0);
    for _ in 0..questions {
        let sentence = sentence(task, Split::HeldOut, &mut rng);
        let logits = tch::no_grad(|| model.forward(sentence.prompt.as_str()))?; // [1, pos, d_vocab]
        let probabilities = logits.select(1, -1).squeeze_dim(0).softmax(-1, Kind::Double); // [d_vocab]
        let answers = sentence.answers.iter().map(|answer| model.to_single_token(answer));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        let top = probabilities.argmax(-1, false).int64_value(&[]);
        right += f64::from(answers.contains(&top));
        probability += probabilities.index_select(0, &Tensor::from_slice(&answers)).sum(Kind::Double).double_value(&[]);
    }
    let of = questions as f64;
    Ok(Mark { right: right / of, probability: probability / of })
}
