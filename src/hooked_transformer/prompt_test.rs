//! [`PromptTest`]: how well a model knows the answer to a prompt.

use std::fmt;

use tch::{Kind, Tensor};

use super::{HookedTransformer, RunOptions};
use crate::tensor::precision::widened;
use crate::text::input::TokenOptions;
use crate::text::tokenizer::Bos;
use crate::{Error, Result};

/// The choices of [`HookedTransformer::test_prompt_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptTestOptions {
    bos: Bos,
    prepend_space_to_answer: bool,
    top_k: usize,
}

impl Default for PromptTestOptions {
    fn default() -> Self {
        PromptTestOptions { bos: Bos::Default, prepend_space_to_answer: true, top_k: 10 }
    }
}

impl PromptTestOptions {
    /// TransformerLens' defaults: BOS as the model's default says, a space before the answers, ten tokens at each position.
    pub fn new() -> Self {
        PromptTestOptions::default()
    }

    /// Whether the BOS token is put before the prompt.
    pub fn prepend_bos(mut self, bos: Bos) -> Self {
        self.bos = bos;
        self
    }

    /// Whether answers without a space at their beginning get one; yes by default.
    pub fn prepend_space_to_answer(mut self, yes: bool) -> Self {
        self.prepend_space_to_answer = yes;
        self
    }

    /// How many of the most likely tokens are kept at each position.
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = k;
        self
    }
}

/// How well a model knows the answer to a prompt: TransformerLens' `test_prompt`, as a value that prints as its table.
///
/// Made by [`HookedTransformer::test_prompt`].
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTest {
    /// The prompt's tokens, as text.
    pub prompt: Vec<String>,
    /// Each answer's tokens, as text.
    pub answers: Vec<Vec<String>>,
    /// The positions at which answers were expected: one for each token of a single answer, and one for several answers.
    pub positions: Vec<AnswerPosition>,
}

/// What a model expects at one position of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerPosition {
    /// The token of each answer.
    pub answers: Vec<RankedToken>,
    /// The most likely tokens, the first of all first.
    pub top: Vec<RankedToken>,
}

/// A token and what a model makes of it at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedToken {
    /// The token.
    pub id: i64,
    /// Its text.
    pub text: String,
    /// How many tokens are more likely.
    pub rank: usize,
    /// Its logit.
    pub logit: f64,
    /// Its probability.
    pub probability: f64,
}

impl HookedTransformer {
    /// How likely `answers` are after `prompt`: ranks, logits, probabilities, and the most likely tokens.
    ///
    /// Of a single answer every token is looked at, each after those before it. Of several answers the first tokens are compared.
    /// Answers get a space at their beginning, as TransformerLens gives them.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let test = model.test_prompt("When Mary and John went to the shop, John gave a bag to", ["Mary", "John"])?;
    /// assert_eq!(test.positions[0].answers[0].rank, 0);
    /// println!("{test}"); // TransformerLens' table, 80 columns wide
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`] and [`HookedTransformer::run`]; [`Error::EmptyPrompt`] for no answer.
    pub fn test_prompt<S: AsRef<str>>(&self, prompt: &str, answers: impl IntoIterator<Item = S>) -> Result<PromptTest> {
        self.test_prompt_with(prompt, answers, PromptTestOptions::default())
    }

    /// [`HookedTransformer::test_prompt`] with choices.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::test_prompt`].
    pub fn test_prompt_with<S: AsRef<str>>(
        &self,
        prompt: &str,
        answers: impl IntoIterator<Item = S>,
        options: PromptTestOptions,
    ) -> Result<PromptTest> {
        let tokenizer = self.tokenizer()?;
        let spaced = |answer: &str| match options.prepend_space_to_answer && !answer.starts_with(' ') {
            true => format!(" {answer}"),
            false => answer.to_string(),
        };
        let answers = answers.into_iter().map(|answer| tokenizer.encode(&spaced(answer.as_ref()), false));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        if answers.is_empty() || answers.iter().any(Vec::is_empty) {
            return Err(Error::EmptyPrompt);
        }
        let prompt = self.to_tokens_with(prompt, TokenOptions::new().prepend_bos(options.bos))?.rows()?.remove(0);
        // A single answer is followed to its end.
        let expected: Vec<Vec<i64>> = match answers.as_slice() {
            [answer] => answer.iter().map(|&id| vec![id]).collect(),
            several => vec![several.iter().map(|answer| answer[0]).collect()],
        };
        let followed = if answers.len() == 1 { &answers[0][..expected.len() - 1] } else { &[] };
        let tokens = [prompt.as_slice(), followed].concat();
        let first = prompt.len() as i64 - 1;
        let run = RunOptions::new().logits_at(first..tokens.len() as i64);
        let logits = self.run(tokens, run)?.take_logits()?;
        let logits = widened(&logits.f_select(0, 0)?)?; // [position, d_vocab]
        let position = |(i, ids): (i64, &Vec<i64>)| self.answer_position(&logits.f_select(0, i)?, ids, options.top_k);
        let shown = |ids: &Vec<i64>| self.to_str_tokens(ids);
        Ok(PromptTest {
            prompt: shown(&prompt)?,
            answers: answers.iter().map(shown).collect::<Result<_>>()?,
            positions: (0..).zip(&expected).map(position).collect::<Result<_>>()?,
        })
    }

    /// `ids` and the most likely tokens by logits of `[d_vocab]`.
    fn answer_position(&self, logits: &Tensor, ids: &[i64], top_k: usize) -> Result<AnswerPosition> {
        let probabilities = logits.f_softmax(-1, None::<Kind>)?;
        let d_vocab = logits.size()[0];
        let ranked = |id: i64| {
            if !(0..d_vocab).contains(&id) {
                return Err(Error::TokenOutOfRange { id, d_vocab: d_vocab as usize });
            }
            let logit = logits.f_select(0, id)?;
            let rank = logits.f_gt_tensor(&logit)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as usize;
            Ok(RankedToken {
                id,
                text: self.to_single_str_token(id)?,
                rank,
                logit: logit.f_double_value(&[])?,
                probability: probabilities.f_double_value(&[id])?,
            })
        };
        let (_, top) = logits.f_topk((top_k as i64).min(d_vocab), -1, true, true)?;
        let top = Vec::<i64>::try_from(top.f_to_device(tch::Device::Cpu)?)?;
        Ok(AnswerPosition {
            answers: ids.iter().map(|&id| ranked(id)).collect::<Result<_>>()?,
            top: top.into_iter().map(ranked).collect::<Result<_>>()?,
        })
    }
}

/// The width that printed tables keep to.
const WIDTH: usize = 80;

impl fmt::Display for PromptTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = self.answers.len() > 1;
        let plural = if several { "s" } else { "" };
        let list = |tokens: &[String]| tokens.iter().map(|token| quoted(token)).collect::<Vec<_>>();
        wrapped(f, "Tokenized prompt: [", &list(&self.prompt), "]")?;
        writeln!(f)?;
        if several {
            let answers: Vec<String> =
                self.answers.iter().map(|answer| format!("[{}]", list(answer).join(", "))).collect();
            wrapped(f, "Tokenized answers: [", &answers, "]")?;
        } else {
            wrapped(
                f,
                "Tokenized answer: [",
                &self.answers.iter().flat_map(|answer| list(answer)).collect::<Vec<_>>(),
                "]",
            )?;
        }
        writeln!(f)?;
        for AnswerPosition { answers, top } in &self.positions {
            writeln!(f, "Performance on answer token{plural}:")?;
            for token in answers {
                row(f, &format!("Rank: {:<8}", token.rank), token)?;
            }
            for (i, token) in top.iter().enumerate() {
                row(f, &format!("Top {i}th token."), token)?;
            }
        }
        let ranked = |token: &RankedToken| format!("({}, {})", quoted(&token.text), token.rank);
        let ranks = self.positions.iter().map(|position| {
            let ranks: Vec<String> = position.answers.iter().map(ranked).collect();
            if several {
                format!("[{}]", ranks.join(", "))
            } else {
                ranks.join(", ")
            }
        });
        wrapped(f, "Ranks of the answer tokens: [", &ranks.collect::<Vec<_>>(), "]")
    }
}

/// `Rank: 2        Logit: 14.24 Prob:  3.51% Token: | road|`
fn row(f: &mut fmt::Formatter<'_>, head: &str, token: &RankedToken) -> fmt::Result {
    let head = format!("{head} Logit: {:5.2} Prob: {:5.2}% Token: |", token.logit, token.probability * 100.0);
    let room = WIDTH.saturating_sub(head.chars().count() + 1);
    let text = escaped(&token.text);
    let text = match text.char_indices().nth(room) {
        Some(_) => text.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
        None => text,
    };
    writeln!(f, "{head}{text}|")
}

/// `head` and `items`, separated by commas; lines after the first are indented.
fn wrapped(f: &mut fmt::Formatter<'_>, head: &str, items: &[String], end: &str) -> fmt::Result {
    f.write_str(head)?;
    let mut column = head.chars().count();
    for (i, item) in items.iter().enumerate() {
        let end = if i + 1 == items.len() { end } else { "," };
        let width = item.chars().count() + end.len();
        let space = usize::from(i > 0);
        if column + space + width > WIDTH && i > 0 {
            f.write_str("\n    ")?;
            column = 4;
        } else if i > 0 {
            f.write_str(" ")?;
            column += 1;
        }
        write!(f, "{item}{end}")?;
        column += width;
    }
    Ok(())
}

/// As Python prints a string in a list.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let text = escaped(&text.replace('\\', "\\\\"));
    let text = if quote == '\'' { text.replace('\'', "\\'") } else { text };
    format!("{quote}{text}{quote}")
}

/// Control characters written out, so that a token stays on its line.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_control() {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
