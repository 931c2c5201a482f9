//! From a router's logits to the chosen experts and their weights.

use tch::{Kind, Tensor};

use crate::config::{ChoiceBias, ExpertGroups, Experts, GroupRank, Routing, Scores};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// The score of every expert and the chosen ones: `[batch, pos, expert]` and `[batch, pos, chosen]`.
///
/// Where scores are of the chosen experts only, those of the others are zero.
pub(super) fn route(moe: &Experts, choice_bias: Option<&Tensor>, logits: &Tensor) -> Result<(Tensor, Tensor)> {
    let (routing, k) = (&moe.routing, moe.experts_per_token as i64);
    let mut logits = widened(logits)?;
    if let Some(cap) = routing.logits_soft_cap {
        logits = logits.div_number(cap)?.f_tanh()?.mul_number(cap)?;
    }
    let kind = logits.f_kind()?;
    let scores = match routing.scores {
        Scores::Softmax => Some(logits.f_softmax(-1, kind)?),
        Scores::Sigmoid => Some(logits.f_sigmoid()?),
        Scores::SoftmaxOfChosen => None,
        Scores::SparseMixer { jitter } => return sparse_mixer(&logits, k, jitter),
    };
    let by = match (routing.choice_bias, choice_bias, &scores) {
        (Some(ChoiceBias::OnScores), Some(bias), Some(scores)) => scores.f_add(bias)?,
        (Some(ChoiceBias::OnLogits), Some(bias), _) => logits.f_add(bias)?,
        // The largest logits have the largest scores.
        (_, _, scores) if routing.groups.is_some() => scores.as_ref().unwrap_or(&logits).shallow_clone(),
        _ => logits.shallow_clone(),
    };
    let by = match routing.groups {
        Some(groups) => within_groups(&by, groups)?,
        None => by,
    };
    let (_, indices) = by.f_topk(k, -1, true, true)?; // [batch, pos, chosen]
    let scores = match scores {
        Some(scores) => scores,
        None => {
            let chosen = logits.f_gather(-1, &indices, false)?.f_softmax(-1, kind)?;
            logits.f_zeros_like()?.f_scatter(-1, &indices, &chosen)?
        }
    };
    Ok((scores, indices))
}

/// The weights of the chosen experts, of the scores of all: `[batch, pos, chosen]`.
pub(super) fn of_chosen(routing: &Routing, scores: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let mut weights = scores.f_gather(-1, indices, false)?;
    if let Some(norm) = routing.normalize {
        let size = match norm.p == 1.0 {
            true => weights.f_sum_dim_intlist([-1i64].as_slice(), true, None)?, // weights are not negative
            false => weights.p_norm_over(norm.p, &[-1], true)?,
        };
        let size = if norm.min > 0.0 { size.at_least(norm.min)? } else { size };
        weights = weights.f_div(&size)?;
    }
    match routing.scale == 1.0 {
        true => Ok(weights),
        false => weights.mul_number(routing.scale),
    }
}

/// What experts are chosen by, −∞ outside the best groups: `[batch, pos, expert]`.
fn within_groups(by: &Tensor, groups: ExpertGroups) -> Result<Tensor> {
    let size = by.size();
    let grouped = by.f_view([size[0], size[1], groups.groups as i64, -1])?; // [batch, pos, group, expert of the group]
    let best = match groups.rank {
        GroupRank::Largest => grouped.f_amax([-1i64].as_slice(), false)?,
        GroupRank::TwoLargest => {
            grouped.f_topk(2, -1, true, true)?.0.f_sum_dim_intlist([-1i64].as_slice(), false, None)?
        }
    }; // [batch, pos, group]
    let (_, kept) = best.f_topk(groups.kept as i64, -1, true, true)?;
    let hidden = Tensor::f_ones(best.size(), (Kind::Bool, by.device()))?.f_scatter(
        -1,
        &kept,
        &Tensor::f_zeros(kept.size(), (Kind::Bool, by.device()))?,
    )?;
    Ok(grouped.fill_where(&hidden.f_unsqueeze(-1)?, f64::NEG_INFINITY)?.f_view(size.as_slice())?)
}

/// [`Scores::SparseMixer`]: experts one after the other, each with a softmax over those that are near it.
fn sparse_mixer(logits: &Tensor, k: i64, jitter: f64) -> Result<(Tensor, Tensor)> {
    let kind = logits.f_kind()?;
    let mut left = logits.shallow_clone(); // [batch, pos, expert]
    let mut scores = logits.f_zeros_like()?;
    let mut chosen = Vec::new();
    for _ in 0..k {
        let (largest, index) = left.f_max_dim(-1, true)?; // [batch, pos, 1]
        let distance = largest.f_sub(logits)?.f_div(&logits.f_abs()?.f_maximum(&largest)?)?;
        let near = left.fill_where(&distance.gt_number(2.0 * jitter)?, f64::NEG_INFINITY)?;
        let score = near.f_softmax(-1, kind)?.f_gather(-1, &index, false)?;
        scores = scores.f_scatter(-1, &index, &score)?;
        let taken = Tensor::f_zeros(left.size(), (Kind::Bool, left.device()))?.f_scatter(
            -1,
            &index,
            &Tensor::f_ones(index.size(), (Kind::Bool, left.device()))?,
        )?;
        left = left.fill_where(&taken, f64::NEG_INFINITY)?;
        chosen.push(index);
    }
    Ok((scores, Tensor::f_cat(&chosen, -1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within twice the jitter of the largest lies the second of three; of those that are left, none is near.
    #[test]
    fn a_sparse_mixer_weighs_an_expert_against_those_near_it() {
        let logits = Tensor::from_slice(&[1.0, 0.985, 0.5]).view([1, 1, 3]);
        let (scores, chosen) = sparse_mixer(&logits, 2, 0.01).unwrap();
        assert_eq!(Vec::<i64>::try_from(chosen.flatten(0, 2)).unwrap(), [0, 1]);
        let scores: Vec<f64> = scores.flatten(0, 2).try_into().unwrap();
        let first = 1.0 / (1.0 + (-0.015f64).exp());
        approx::assert_abs_diff_eq!(scores[..], [first, 1.0, 0.0][..], epsilon = 1e-12);
    }
}
