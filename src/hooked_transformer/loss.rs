//! The next-token cross entropy.

use tch::{Kind, Tensor};

use crate::tensor::precision::at_least_float;
use crate::tensor::scalar::{arange, Scalar};
use crate::text::input::Tokens;
use crate::{Error, Result};

/// The cross entropy of each next token, `[batch, pos − 1]`, or its mean over tokens. In nats, and in fp32 or fp64.
///
/// Padding is excluded: the loss of a padding token is zero, and the mean does not count it. Each token is predicted from the logits at the
/// last token before it that is not padding.
///
/// # Errors
///
/// [`Error::WrongInput`] for a mean if no row has two tokens.
pub(crate) fn next_token(logits: &Tensor, tokens: &Tokens, per_token: bool) -> Result<Tensor> {
    let [batch, len] = [logits.size()[0], logits.size()[1]];
    let kind = at_least_float(logits.f_kind()?);
    let log_probs = logits.f_narrow(1, 0, len - 1)?.f_log_softmax(-1, kind)?; // [batch, pos - 1, d_vocab]
    let next = tokens.ids.f_narrow(1, 1, len - 1)?; // [batch, pos - 1]
    let too_short = || Error::wrong_input("a loss needs at least two tokens, because nothing predicts the first one");
    let Some(mask) = &tokens.mask else {
        let loss = log_probs.f_gather(-1, &next.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?.f_neg()?; // [batch, pos - 1]
        return match per_token {
            true => Ok(loss),
            false if len < 2 => Err(too_short()),
            false => Ok(loss.f_mean(kind)?),
        };
    };
    if len < 2 {
        return if per_token { Ok(Tensor::f_zeros([batch, 0], (kind, logits.device()))?) } else { Err(too_short()) };
    }
    // The column of the last token that is not padding, up to each column; −1 if there is none.
    let columns = arange(0..len, logits.device())?.f_expand([batch, len], false)?;
    let (last, _) = columns.fill_where(&mask.f_logical_not()?, -1.0)?.f_cummax(1)?; // [batch, pos]
    let source = last.f_narrow(1, 0, len - 1)?; // [batch, pos - 1]
    let predicted = mask.f_narrow(1, 1, len - 1)?.f_logical_and(&source.at_least_int(0)?.f_eq_tensor(&source)?)?;
    let row = arange(0..batch, logits.device())?.f_unsqueeze(1)?; // [batch, 1]
    let loss = log_probs.f_index(&[Some(&row), Some(&source.at_least_int(0)?), Some(&next)])?.f_neg()?; // [batch, pos - 1]
    let loss = loss.fill_where(&predicted.f_logical_not()?, 0.0)?;
    if per_token {
        return Ok(loss);
    }
    match predicted.f_sum(Kind::Int64)?.f_int64_value(&[])? {
        0 => Err(too_short()),
        count => loss.f_sum(kind)?.div_number(count as f64),
    }
}
