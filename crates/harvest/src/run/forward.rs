//! One run of the model on a batch of rows, and what is kept of it.

use tch_lens::hook::Name;
use tch_lens::tch::{Device, Kind, Tensor};
use tch_lens::{HookFilter, PaddingSide, ReturnType, RunOptions, Tokens};

use crate::job::{Job, KeptPoint};
use crate::manifest::Keep;
use crate::prepare::Prepared;
use crate::{Error, Result};

/// What is kept of a point in one run, on the model's device. Rows are the activations of the batch, row by row of it.
#[derive(Debug)]
pub(super) enum Values {
    /// `[activation, width]`.
    Dense(Tensor),
    Sparse {
        /// Where the entries of each activation begin, and where those of the last one end: `[activation + 1]`.
        offsets: Tensor,
        /// `[entry]`
        index: Tensor,
        /// `[entry]`
        value: Tensor,
    },
}

/// Runs the model on the rows of a batch, and takes each point's activations at the kept positions.
pub(super) fn forward(job: &Job, prepared: &Prepared, batch: &[usize]) -> Result<Vec<Values>> {
    let rows: Vec<Vec<i64>> =
        batch.iter().map(|&row| prepared.rows[row].iter().map(|token| token.id).collect()).collect();
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let at: Vec<i64> = batch
        .iter()
        .enumerate()
        .flat_map(|(n, &row)| prepared.kept[row].iter().map(move |&position| (n * longest + position) as i64))
        .collect();
    let tokens = Tokens::padded(&rows, job.pad_id(), PaddingSide::Right)?;
    let points: Vec<_> = job.points().iter().map(|kept| Name::Point(kept.point)).collect();
    let options = RunOptions::new().cache(HookFilter::These(points)).return_type(ReturnType::None);
    let cache = job.model().run(&tokens, options)?.cache;
    let at = Tensor::f_from_slice(&at)?.f_to_device(job.model().device())?;
    job.points()
        .iter()
        .map(|kept| {
            let found = cache.get(kept.point)?; // [batch, pos, …]
            let flat = found.f_reshape([(rows.len() * longest) as i64, kept.read as i64])?; // [batch · pos, width]
            let x = flat.f_index_select(0, &at)?; // [activation, width]
            values(kept, x)
        })
        .collect()
}

fn values(kept: &KeptPoint, x: Tensor) -> Result<Values> {
    let float = |x: &Tensor| -> Result<Tensor> { Ok(x.f_to_kind(Kind::Float)?) };
    match (&kept.keep, &kept.dictionary) {
        (Keep::Whole, _) => Ok(Values::Dense(float(&x)?)),
        (Keep::TopK { k }, _) => {
            let (value, index) = float(&x)?.f_topk(*k as i64, -1, true, true)?; // [activation, k]
            let offsets: Vec<i64> = (0..=x.size()[0]).map(|n| n * *k as i64).collect();
            Ok(Values::Sparse {
                offsets: Tensor::f_from_slice(&offsets)?,
                index: index.f_flatten(0, -1)?,
                value: value.f_flatten(0, -1)?,
            })
        }
        (Keep::Dictionary { .. }, Some(dictionary)) => {
            let features = dictionary.encode_sparse(&x.f_to_kind(dictionary.kind())?)?;
            Ok(Values::Sparse {
                offsets: features.offsets().shallow_clone(),
                index: features.features().shallow_clone(),
                value: float(features.values())?,
            })
        }
        (Keep::Dictionary { source, .. }, None) => {
            Err(Error::Setting(format!("the dictionary `{source}` was not loaded")))
        }
    }
}

/// Numbers of a tensor in memory.
pub(super) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut numbers = vec![0.0; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}

pub(super) fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous()?;
    let mut numbers = vec![0; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}
