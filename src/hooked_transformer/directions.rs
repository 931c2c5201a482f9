//! [`OutputTokens`], and the directions in the residual stream that increase their logits.

use tch::{Kind, Tensor};

use super::HookedTransformer;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// Tokens of the output vocabulary: a text of one token, an id, or a tensor of ids with any shape.
#[derive(Debug)]
pub enum OutputTokens {
    /// A text of exactly one token.
    Text(String),
    /// The id of a token.
    Id(i64),
    /// Ids, with any shape.
    Ids(Tensor),
}

impl HookedTransformer {
    /// The column of `W_U` of each token: `[d_model]` for a text or id, `[…, d_model]` for a tensor of ids `[…]`.
    ///
    /// The dot product of the normalised stream and this direction, plus `b_U`, is the token's logit. With weight processing, `W_U` includes the
    /// gain of the last norm. Without it, the direction applies to the stream after the norm's gain.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let direction = model.tokens_to_residual_directions(" Mary")? - model.tokens_to_residual_directions(" John")?;
    /// assert_eq!(direction.size(), [128]);
    /// let tokens = model.to_tokens(["When Mary and John", "When John and Mary"])?;
    /// assert_eq!(model.tokens_to_residual_directions(&tokens)?.size(), [2, 5, 128]); // [batch, pos, d_model]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for texts; [`Error::TokenOutOfRange`] for ids outside the
    /// output vocabulary; [`Error::Shape`] for a tensor that does not hold integers; [`Error::Unsupported`] of a model with a prediction head.
    pub fn tokens_to_residual_directions(&self, tokens: impl Into<OutputTokens>) -> Result<Tensor> {
        if self.config().head.is_some() {
            return Err(Error::unsupported(
                "neurons stand between the last norm and the unembedding, so no direction is that of a token",
            ));
        }
        let (ids, d_vocab) = (self.output_ids(tokens.into())?, self.config().d_vocab_out);
        if ids.numel() > 0 {
            for id in [ids.f_min()?, ids.f_max()?] {
                let id = id.f_int64_value(&[])?;
                if !(0..d_vocab as i64).contains(&id) {
                    return Err(Error::TokenOutOfRange { id, d_vocab });
                }
            }
        }
        let shape = [ids.size(), vec![self.config().d_model as i64]].concat();
        let columns = self.w_u()?.f_tr()?.f_index_select(0, &ids.f_to_device(self.device())?.f_reshape(-1)?)?;
        Ok(columns.f_view(shape.as_slice())?) // […, d_model]
    }

    /// The ids, as int64.
    fn output_ids(&self, tokens: OutputTokens) -> Result<Tensor> {
        let id = match tokens {
            OutputTokens::Text(text) => self.to_single_token(&text)?,
            OutputTokens::Id(id) => id,
            OutputTokens::Ids(ids) => {
                return match ids.f_kind()? {
                    Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8 => Ok(ids.f_to_kind(Kind::Int64)?),
                    kind => Err(Error::Shape {
                        what: format!("the tokens' {kind:?} tensor"),
                        found: ids.size(),
                        expected: "integers".into(),
                    }),
                }
            }
        };
        Ok(Tensor::f_from_slice(&[id])?.f_squeeze_dim(0)?)
    }
}

macro_rules! output_tokens_from {
    ($($type:ty: $pattern:pat => $tokens:expr;)*) => {
        $(impl From<$type> for OutputTokens {
            fn from($pattern: $type) -> Self {
                $tokens
            }
        })*
    };
}

output_tokens_from! {
    &str: text => OutputTokens::Text(text.into());
    &String: text => OutputTokens::Text(text.clone());
    String: text => OutputTokens::Text(text);
    i64: id => OutputTokens::Id(id);
    &[i64]: ids => OutputTokens::Ids(Tensor::from_slice(ids));
    Vec<i64>: ids => OutputTokens::Ids(Tensor::from_slice(&ids));
    Tensor: ids => OutputTokens::Ids(ids);
    &Tensor: ids => OutputTokens::Ids(ids.shallow_clone());
    &Tokens: tokens => OutputTokens::Ids(tokens.ids.shallow_clone());
}

impl<const N: usize> From<[i64; N]> for OutputTokens {
    fn from(ids: [i64; N]) -> Self {
        OutputTokens::Ids(Tensor::from_slice(&ids))
    }
}
