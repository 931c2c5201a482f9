//! Activations of a mixture's experts, which have one row per token that is routed to the expert.
//!
//! An expert's rows, `[hit, d]`, have TransformerLens' order: first the tokens whose first choice is the expert, then the tokens whose
//! second choice it is, and so on.

use tch::{Kind, Tensor};

use super::columns::Columns;
use super::scalar::{arange, Scalar};
use crate::{Error, Result};

/// The tokens that are routed to an expert by the indices `[…, chosen]`: the rank of the choice and the token's row, `[hit]` each.
pub(crate) fn hits(indices: &Tensor, expert: usize) -> Result<(Tensor, Tensor)> {
    let hits = is_hit(indices, expert)?.f_nonzero()?; // [hit, 2]
    Ok((hits.f_select(1, 0)?, hits.f_select(1, 1)?))
}

/// The [`hits`] of all experts, with a single copy from the device.
pub(crate) fn all_hits(indices: &Tensor, n_experts: usize) -> Result<Vec<(Tensor, Tensor)>> {
    let by_place = indices.f_flatten(0, -2)?.f_tr()?; // [chosen, row]
    let size = by_place.size();
    let device = indices.device();
    let places = arange(0..size[0], device)?.f_unsqueeze(1)?.f_expand(&size, false)?.f_reshape(-1)?;
    let rows = arange(0..size[1], device)?.f_expand(&size, false)?.f_reshape(-1)?;
    let (sorted, order) = by_place.f_reshape(-1)?.f_sort_stable(true, 0, false)?;
    let (places, rows) = (places.f_index_select(0, &order)?, rows.f_index_select(0, &order)?);
    let experts = arange(0..n_experts as i64 + 1, device)?;
    let starts = Vec::<i64>::try_from(experts.f_searchsorted(&sorted, false, false, "left", None::<&Tensor>)?)?;
    let of_expert = |bounds: &[i64]| -> Result<(Tensor, Tensor)> {
        let len = bounds[1] - bounds[0];
        Ok((places.f_narrow(0, bounds[0], len)?, rows.f_narrow(0, bounds[0], len)?))
    };
    starts.windows(2).map(of_expert).collect()
}

/// Whether each choice of each token is the expert: `[chosen, row]`.
fn is_hit(indices: &Tensor, expert: usize) -> Result<Tensor> {
    indices.f_flatten(0, -2)?.f_tr()?.eq_int(expert as i64)
}

/// The rows of an expert that belong to chosen batch rows and positions.
///
/// `rows` is `[hit, d]` and `indices`, which routes tokens, is `[batch, pos, chosen]`. `batch` and `places` are indices on the batch
/// axis and the position axis.
pub(crate) fn rows_at(
    rows: &Tensor,
    indices: &Tensor,
    expert: usize,
    batch: &Columns,
    places: &Columns,
) -> Result<Tensor> {
    Ok(rows.f_index_select(0, &row_numbers(rows, indices, expert, batch, places)?)?)
}

/// The indices, among an expert's rows, of the rows that [`rows_at`] returns: `[row]`.
pub(crate) fn row_numbers(
    rows: &Tensor,
    indices: &Tensor,
    expert: usize,
    batch: &Columns,
    places: &Columns,
) -> Result<Tensor> {
    let size = indices.size();
    let hit = is_hit(indices, expert)?;
    check(rows, &hit, expert)?;
    let number = hit.f_flatten(0, -1)?.f_cumsum(0, Kind::Int64)?.add_int(-1)?; // the row of each hit: [chosen * batch * pos]
    let chosen = |table: &Tensor| -> Result<Tensor> {
        let table = table.f_view([size[2], size[0], size[1]])?; // [chosen, batch, pos]
        let table = batch.select(&table.f_transpose(0, 1)?, 0)?; // [batch, chosen, pos]
        Ok(places.select(&table, 2)?.f_transpose(0, 1)?.f_reshape(-1)?)
    };
    Ok(chosen(&number)?.f_masked_select(&chosen(&hit)?)?)
}

/// The rows of an expert times their router weights, scattered to their tokens: `[batch, pos, d]`, zero for all other tokens.
///
/// `rows` is `[hit, d]`; `weights` and `indices` are `[batch, pos, chosen]`. A token that chose the expert twice gets both rows.
pub(crate) fn weighted(rows: &Tensor, weights: &Tensor, indices: &Tensor, expert: usize) -> Result<Tensor> {
    check(rows, &is_hit(indices, expert)?, expert)?;
    let (place, row) = hits(indices, expert)?;
    let weights = weights.f_flatten(0, -2)?.f_to_kind(rows.f_kind()?)?; // [row, chosen]
    let weight = weights.f_index(&[Some(&row), Some(&place)])?.f_unsqueeze(1)?; // [hit, 1]
    let (size, d) = (indices.size(), rows.size()[1]);
    let zeros = Tensor::f_zeros([size[0] * size[1], d], (rows.f_kind()?, rows.device()))?;
    Ok(zeros.f_index_add(0, &row, &rows.f_mul(&weight)?)?.f_view([size[0], size[1], d])?)
}

/// Checks that there is one row per hit.
fn check(rows: &Tensor, hit: &Tensor, expert: usize) -> Result<()> {
    let count = hit.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    match rows.size().first() {
        Some(found) if *found == count => Ok(()),
        _ => Err(Error::Shape {
            what: format!("the rows of expert {expert}"),
            found: rows.size(),
            expected: format!("[{count}, d_mlp], one row for each token that the indices route to it"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// The selected rows are the rows of the selected indices, in the same order, even if a token chose the expert twice.
        #[test]
        fn chosen_rows_are_those_of_the_chosen_indices(
            indices in prop::collection::vec(0i64..3, 2 * 4 * 2),
            batch in prop::collection::vec(0i64..2, 1..3),
            places in prop::collection::vec(0i64..4, 0..5),
            per_row: bool,
            expert in 0usize..3,
        ) {
            let indices = Tensor::from_slice(&indices).view([2, 4, 2]);
            // Each row holds its token and the rank of the choice.
            let (place, row) = hits(&indices, expert).unwrap();
            let rows = Tensor::stack(&[&row, &place], 1).to_kind(Kind::Float);
            let batch = Columns::list(batch);
            let places = match per_row {
                true => Columns::per_row((0..batch.len()).map(|i| places.get(i).copied().unwrap_or(3)).collect()),
                false => Columns::list(places),
            };
            let ours = rows_at(&rows, &indices, expert, &batch, &places).unwrap();
            let select = |t: &Tensor| places.select(&batch.select(t, 0).unwrap(), 1).unwrap();
            let kept = select(&indices);
            let number = select(&arange(0..8, Device::Cpu).unwrap().view([2, 4]).unsqueeze(-1));
            let (place, row) = hits(&kept, expert).unwrap();
            let token = number.reshape(-1).index_select(0, &row);
            prop_assert_eq!(ours, Tensor::stack(&[&token, &place], 1).to_kind(Kind::Float));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_hits_of_all_experts_are_those_of_each(indices in prop::collection::vec(0i64..4, 2 * 3 * 2)) {
            let indices = Tensor::from_slice(&indices).view([2, 3, 2]);
            for (expert, found) in all_hits(&indices, 5).unwrap().into_iter().enumerate() {
                prop_assert_eq!(found, hits(&indices, expert).unwrap());
            }
        }
    }

    #[test]
    fn each_hit_counts_by_its_own_weight() {
        let indices = Tensor::from_slice(&[1i64, 1, 0, 1]).view([1, 2, 2]); // the first token hits expert 1 twice
        let weights = Tensor::from_slice(&[0.5f32, 0.25, 0.75, 2.0]).view([1, 2, 2]);
        let rows = Tensor::from_slice(&[1.0f32, 10.0, 100.0]).view([3, 1]); // first choices, then second ones
        let sum = weighted(&rows, &weights, &indices, 1).unwrap();
        assert_eq!(Vec::<f32>::try_from(sum.view(-1)).unwrap(), [0.5 + 2.5, 200.0]);
        assert!(weighted(&rows, &weights, &indices, 0).unwrap_err().to_string().contains("expert 0"));
    }
}
