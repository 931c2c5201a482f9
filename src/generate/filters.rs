//! Filters of a distribution: which tokens can be drawn. Removed ones get a score of −∞.
//!
//! `keep` is transformers' `min_tokens_to_keep`: at least that many of the most likely tokens survive. Ties are kept or
//! removed as transformers does.

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::Result;

/// Scores divided by a temperature: below 1 the distribution is sharper, above 1 flatter. Equals `TemperatureLogitsWarper`.
///
/// `scores`: `[batch, d_vocab]`; a temperature of 0 gives infinities, as [`SamplingOptions`](super::SamplingOptions) refuses
/// it.
///
/// ```
/// use tch_lens::generate;
/// let scores = tch::Tensor::from_slice2(&[[2.0f32, -1.0]]);
/// assert_eq!(generate::temperature(&scores, 2.0)?, tch::Tensor::from_slice2(&[[1.0f32, -0.5]]));
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// libtorch's own, here and in all functions of this module that name no others.
pub fn temperature(scores: &Tensor, temperature: f64) -> Result<Tensor> {
    scores.div_number(temperature)
}

/// Keeps the `k` highest scores, and those that equal the lowest of them. Equals `TopKLogitsWarper`.
///
/// A `k` larger than the vocabulary keeps all.
///
/// # Errors
///
/// libtorch's own.
pub fn top_k(scores: &Tensor, k: usize, keep: usize) -> Result<Tensor> {
    let k = k.max(keep).min(vocabulary(scores)?) as i64;
    let (highest, _) = scores.f_topk(k, -1, true, true)?; // [batch, k]
    let removed = scores.f_lt_tensor(&highest.f_narrow(-1, k - 1, 1)?)?;
    remove(scores, &removed)
}

/// Keeps the smallest set of most likely tokens whose probabilities reach `p` (Holtzman et al. 2020). Equals
/// `TopPLogitsWarper`.
///
/// ```
/// use tch_lens::generate;
/// let scores = tch::Tensor::from_slice2(&[[0.6f32, 0.3, 0.1]]).log();
/// let kept = generate::top_p(&scores, 0.8, 1)?.isfinite();
/// assert_eq!(kept, tch::Tensor::from_slice2(&[[true, true, false]]));
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// libtorch's own.
pub fn top_p(scores: &Tensor, p: f64, keep: usize) -> Result<Tensor> {
    let (ascending, order) = scores.f_sort(-1, false)?;
    let cumulative = ascending.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?;
    let removed = cumulative.gt_number(1.0 - p)?.f_logical_not()?;
    let (vocabulary, keep) = (vocabulary(scores)?, keep.max(1).min(vocabulary(scores)?));
    let kept = removed.f_narrow(-1, (vocabulary - keep) as i64, keep as i64)?.f_zeros_like()?;
    let removed = Tensor::f_cat(&[&removed.f_narrow(-1, 0, (vocabulary - keep) as i64)?, &kept], -1)?;
    remove(scores, &removed.f_scatter(-1, &order, &removed)?)
}

/// Removes tokens less likely than `p` times the most likely one (Nguyen et al. 2024). Equals `MinPLogitsWarper`.
///
/// # Errors
///
/// libtorch's own.
pub fn min_p(scores: &Tensor, p: f64, keep: usize) -> Result<Tensor> {
    let probabilities = scores.f_softmax(-1, None::<Kind>)?;
    let threshold = probabilities.f_amax(-1, true)?.mul_number(p)?; // [batch, 1]
    let removed = probabilities.f_lt_tensor(&threshold)?;
    remove(scores, &spare_likeliest(&removed, &probabilities, keep)?)
}

/// Keeps the tokens whose surprise is nearest to the distribution's entropy, until their probabilities reach `mass`
/// (Meister et al. 2023). Equals `TypicalLogitsWarper`.
///
/// It may remove the most likely token.
///
/// # Errors
///
/// libtorch's own.
pub fn typical_p(scores: &Tensor, mass: f64, keep: usize) -> Result<Tensor> {
    let log_probabilities = scores.f_log_softmax(-1, None::<Kind>)?;
    let surprise = log_probabilities.f_neg()?;
    let distance = surprise.f_sub(&entropy(&log_probabilities)?)?.f_abs()?;
    let (sorted, order) = distance.f_sort(-1, false)?;
    let likelihoods = scores.f_gather(-1, &order, false)?.f_softmax(-1, None::<Kind>)?;
    let cumulative = likelihoods.f_cumsum(-1, None::<Kind>)?;
    let below = less_than(&cumulative, mass)?.f_sum_dim_intlist(-1, true, Kind::Int64)?; // [batch, 1]
    let vocabulary = vocabulary(scores)?;
    let last = below.at_most(vocabulary as f64 - 1.0)?.f_to_kind(Kind::Int64)?;
    let removed = sorted.f_gt_tensor(&sorted.f_gather(-1, &last, false)?)?;
    let keep = keep.max(1).min(vocabulary) as i64;
    let kept = removed.f_narrow(-1, 0, keep)?.f_zeros_like()?;
    let removed = Tensor::f_cat(&[&kept, &removed.f_narrow(-1, keep, vocabulary as i64 - keep)?], -1)?;
    remove(scores, &removed.f_scatter(-1, &order, &removed)?)
}

/// Removes tokens less likely than `epsilon` (Hewitt et al. 2022). Equals `EpsilonLogitsWarper`.
///
/// # Errors
///
/// libtorch's own.
pub fn epsilon_cutoff(scores: &Tensor, epsilon: f64, keep: usize) -> Result<Tensor> {
    let probabilities = scores.f_softmax(-1, None::<Kind>)?;
    let removed = less_than(&probabilities, epsilon)?;
    remove(scores, &spare_highest(&removed, scores, keep)?)
}

/// Removes tokens less likely than `min(epsilon, √epsilon · exp(−entropy))` (Hewitt et al. 2022). Equals `EtaLogitsWarper`.
///
/// # Errors
///
/// libtorch's own.
pub fn eta_cutoff(scores: &Tensor, epsilon: f64, keep: usize) -> Result<Tensor> {
    let probabilities = scores.f_softmax(-1, None::<Kind>)?;
    let entropy = entropy(&scores.f_log_softmax(-1, None::<Kind>)?)?; // [batch, 1]
    let eta = entropy.f_neg()?.f_exp()?.mul_number(epsilon.sqrt())?.at_most(epsilon)?;
    let removed = probabilities.f_lt_tensor(&eta)?;
    remove(scores, &spare_highest(&removed, scores, keep)?)
}

/// `−Σ p log p`, in nats: `[batch, 1]`. Impossible tokens add nothing.
fn entropy(log_probabilities: &Tensor) -> Result<Tensor> {
    let terms = log_probabilities.f_mul(&log_probabilities.f_exp()?)?;
    Ok(terms.f_nansum(-1i64, true, None::<Kind>)?.f_neg()?)
}

/// `tensor < number`
fn less_than(tensor: &Tensor, number: f64) -> Result<Tensor> {
    tensor.f_neg()?.gt_number(-number)
}

/// `removed`, but never one of the `keep` most likely tokens.
fn spare_likeliest(removed: &Tensor, probabilities: &Tensor, keep: usize) -> Result<Tensor> {
    let keep = keep.max(1).min(vocabulary(removed)?) as i64;
    let (_, likeliest) = probabilities.f_topk(keep, -1, true, true)?;
    Ok(removed.f_scatter(-1, &likeliest, &Tensor::f_zeros(likeliest.size(), (Kind::Bool, removed.device()))?)?)
}

/// `removed`, but never a token that scores as high as the `keep`th.
fn spare_highest(removed: &Tensor, scores: &Tensor, keep: usize) -> Result<Tensor> {
    let keep = keep.max(1).min(vocabulary(scores)?) as i64;
    let (highest, _) = scores.f_topk(keep, -1, true, true)?;
    Ok(removed.f_logical_and(&scores.f_lt_tensor(&highest.f_narrow(-1, keep - 1, 1)?)?)?)
}

fn remove(scores: &Tensor, removed: &Tensor) -> Result<Tensor> {
    scores.fill_where(removed, f64::NEG_INFINITY)
}

/// The last axis' length: 1 at least, so that what takes a largest element has one.
fn vocabulary(scores: &Tensor) -> Result<usize> {
    match scores.size().last() {
        Some(&length) if length > 0 => Ok(length as usize),
        _ => Err(super::sampler::wrong_shape(scores, "[batch, d_vocab]".into())),
    }
}
