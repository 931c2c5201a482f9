//! The next-token loss.

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// Cross entropy of each token given those before it, in nats and fp32: `[batch, pos − 1]`, or its mean.
///
/// Padding is no token: it counts zero, and not at all in the mean.
pub(crate) fn next_token(logits: &Tensor, tokens: &Tokens, per_token: bool) -> Result<Tensor> {
    let len = logits.size()[1];
    let log_probs = logits.f_narrow(1, 0, len - 1)?.f_log_softmax(-1, Kind::Float)?; // [batch, pos - 1, d_vocab]
    let next = tokens.ids.f_narrow(1, 1, len - 1)?.f_unsqueeze(-1)?; // [batch, pos - 1, 1]
    let loss = log_probs.f_gather(-1, &next, false)?.f_squeeze_dim(-1)?.f_neg()?; // [batch, pos - 1]
    let none = || Error::invalid("a loss needs at least two tokens: the first is predicted from nothing");
    let Some(mask) = &tokens.mask else {
        return match per_token {
            true => Ok(loss),
            false if len < 2 => Err(none()),
            false => Ok(loss.f_mean(Kind::Float)?),
        };
    };
    let real = mask.f_narrow(1, 1, len - 1)?.f_logical_and(&mask.f_narrow(1, 0, len - 1)?)?;
    let loss = loss.fill_where(&real.f_logical_not()?, 0.0)?;
    if per_token {
        return Ok(loss);
    }
    match real.f_sum(Kind::Int64)?.f_int64_value(&[])? {
        0 => Err(none()),
        count => Ok(loss.f_sum(Kind::Float)?.div_number(count as f64)?),
    }
}
