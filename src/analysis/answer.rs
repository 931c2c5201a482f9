//! [`Answer`]: the tokens whose logits are asked about.

use tch::{Device, Kind, Tensor};

use super::readout::Readout;
use crate::cache::ActivationCache;
use crate::model::Transformer;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result, TokenizerError};

/// The tokens whose logits are asked about: one for all, or one for each row of the batch, position, or both.
///
/// Which of them is said by the constructor, never guessed from a shape. A text or id is one token for all; a pair is a
/// difference of logits, the first's less the second's.
///
/// ```
/// use tch_lens::{analysis::{Answer, DecomposeOptions}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let stack = cache.decompose_resid(DecomposeOptions::new().pos(-1))?;
/// let logit = cache.logit_attrs(&stack, " Mary")?;
/// let difference = cache.logit_attrs(&stack, (" Mary", " John"))?;
/// let same = cache.logit_attrs(&stack, Answer::per_row([model.to_single_token(" Mary")?]).versus(" John"))?;
/// assert!((difference.sum()? - same.sum()?).abs().max().double_value(&[]) < 1e-5);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct Answer {
    correct: Which,
    incorrect: Option<Which>,
}

#[derive(Debug)]
enum Which {
    Text(String),
    Id(i64),
    PerRow(Vec<String>, Vec<i64>),
    PerPosition(Vec<i64>),
    PerRowAndPosition(Tensor),
}

impl Answer {
    /// One id a row of the batch.
    pub fn per_row(ids: impl Into<Vec<i64>>) -> Self {
        Which::PerRow(Vec::new(), ids.into()).into()
    }

    /// One text a row of the batch, each a single token.
    pub fn per_row_texts<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Which::PerRow(texts.into_iter().map(Into::into).collect(), Vec::new()).into()
    }

    /// One id a position.
    pub fn per_position(ids: impl Into<Vec<i64>>) -> Self {
        Which::PerPosition(ids.into()).into()
    }

    /// One id for each row of the batch and position: `[batch, pos]`.
    pub fn per_row_and_position(ids: &Tensor) -> Self {
        Which::PerRowAndPosition(ids.shallow_clone()).into()
    }

    /// The difference between this answer's logits and another's: TransformerLens' `incorrect_tokens`.
    pub fn versus(mut self, incorrect: impl Into<Answer>) -> Self {
        self.incorrect = Some(incorrect.into().correct);
        self
    }

    /// What reads the answer's logit from the stream, for a window of `batch` rows and `pos` positions.
    pub(crate) fn readout(&self, cache: &ActivationCache, (batch, pos): (i64, i64)) -> Result<Readout> {
        let (model, tokenizer) = (cache.model(), cache.tokenizer().ok());
        let (correct, incorrect) = self.both_ids(model, tokenizer, batch, pos)?;
        Readout::new(model, correct, incorrect)
    }

    /// The ids of the answers, and of those that they are compared with: each `[batch or 1, pos or 1]`.
    pub(crate) fn both_ids(
        &self,
        model: &Transformer,
        tokenizer: Option<&Tokenizer>,
        batch: i64,
        pos: i64,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let correct = self.correct.ids(model, tokenizer, batch, pos)?;
        let incorrect = self.incorrect.as_ref().map(|which| which.ids(model, tokenizer, batch, pos)).transpose()?;
        Ok((correct, incorrect))
    }

    /// The answers' ids: `[batch or 1, pos or 1]`.
    pub(crate) fn ids(
        &self,
        model: &Transformer,
        tokenizer: Option<&Tokenizer>,
        batch: i64,
        pos: i64,
    ) -> Result<Tensor> {
        match self.incorrect {
            None => self.correct.ids(model, tokenizer, batch, pos),
            Some(_) => Err(Error::wrong_input("one token is needed here, not a difference of two")),
        }
    }
}

impl Which {
    /// `[batch or 1, pos or 1]`
    fn ids(&self, model: &Transformer, tokenizer: Option<&Tokenizer>, batch: i64, pos: i64) -> Result<Tensor> {
        let d_vocab = model.config().d_vocab_out;
        let wrong = |what: &str, found: Vec<i64>, expected: String| Error::Shape { what: what.into(), found, expected };
        let ids = match self {
            Which::Text(text) => Tensor::f_from_slice(&[single_token(tokenizer, text)?])?.f_view([1, 1])?,
            Which::Id(id) => Tensor::f_from_slice(&[*id])?.f_view([1, 1])?,
            Which::PerRow(texts, ids) => {
                let mut ids = ids.clone();
                for text in texts {
                    ids.push(single_token(tokenizer, text)?);
                }
                if ids.len() as i64 != batch {
                    return Err(wrong("the answers per row", vec![ids.len() as i64], format!("[{batch}]")));
                }
                Tensor::f_from_slice(&ids)?.f_view([batch, 1])?
            }
            Which::PerPosition(ids) => {
                if ids.len() as i64 != pos {
                    return Err(wrong("the answers per position", vec![ids.len() as i64], format!("[{pos}]")));
                }
                Tensor::f_from_slice(ids)?.f_view([1, pos])?
            }
            Which::PerRowAndPosition(ids) => {
                let kind = ids.f_kind()?;
                if !matches!(kind, Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8) {
                    let what = format!("the tensor of answers, of kind {kind:?},");
                    return Err(wrong(&what, ids.size(), "whole numbers".into()));
                }
                if ids.size() != [batch, pos] {
                    let what = "the answers per row and position";
                    return Err(wrong(what, ids.size(), format!("[{batch}, {pos}]")));
                }
                ids.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?
            }
        };
        for id in [ids.f_min()?, ids.f_max()?] {
            let id = id.f_int64_value(&[])?;
            if !(0..d_vocab as i64).contains(&id) {
                return Err(Error::TokenOutOfRange { id, d_vocab });
            }
        }
        Ok(ids.f_to_device(model.device())?)
    }
}

/// The id of a text that is one token.
fn single_token(tokenizer: Option<&Tokenizer>, text: &str) -> Result<i64> {
    tokenizer.ok_or(TokenizerError::Missing)?.single_token(text)
}

impl From<Which> for Answer {
    fn from(correct: Which) -> Self {
        Answer { correct, incorrect: None }
    }
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Which::Text(text.into()).into()
    }
}

impl From<&String> for Answer {
    fn from(text: &String) -> Self {
        Which::Text(text.clone()).into()
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Which::Text(text).into()
    }
}

impl From<i64> for Answer {
    fn from(id: i64) -> Self {
        Which::Id(id).into()
    }
}

impl<A: Into<Answer>, B: Into<Answer>> From<(A, B)> for Answer {
    fn from((correct, incorrect): (A, B)) -> Self {
        correct.into().versus(incorrect)
    }
}
