//! A shard's activations in memory, each written at its place in the files as it comes.

use std::sync::Arc;

use arrow_buffer::Buffer;
use half::{bf16, f16};

use super::forward::{floats, integers, Values};
use crate::job::{Job, KeptPoint};
use crate::manifest::{DType, Keep};
use crate::prepare::Prepared;
use crate::statistics::PointStatistics;
use crate::{Error, Result};

/// A shard whose runs are done.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) columns: Vec<Column>,
    pub(crate) statistics: Vec<PointStatistics>,
}

/// The activations of a point, in the order of the files.
#[derive(Debug)]
pub(crate) enum Column {
    Dense {
        width: usize,
        numbers: Numbers,
    },
    Sparse {
        /// The bounds of each activation's entries.
        spans: Vec<(usize, usize)>,
        index: Vec<u32>,
        value: Numbers,
    },
}

/// Numbers of one of the types.
#[derive(Debug)]
pub(crate) enum Numbers {
    Fp32(Vec<f32>),
    Fp16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Collected {
    pub(super) fn new(job: &Job, prepared: Arc<Prepared>) -> Result<Self> {
        let activations = prepared.activations();
        let column = |kept: &KeptPoint| match kept.keep {
            Keep::Whole => {
                let numbers = Numbers::zeros(kept.dtype, activations * kept.width)?;
                Ok(Column::Dense { width: kept.width, numbers })
            }
            _ => Ok(Column::Sparse {
                spans: vec![(0, 0); activations],
                index: Vec::new(),
                value: Numbers::zeros(kept.dtype, 0)?,
            }),
        };
        let columns = job.points().iter().map(column).collect::<Result<_>>()?;
        let statistics =
            job.points().iter().map(|kept| PointStatistics::new(kept.statistics_name(), kept.width)).collect();
        Ok(Collected { prepared, columns, statistics })
    }

    /// Adds what came of one run.
    pub(super) fn add(&mut self, job: &Job, batch: &[usize], outputs: &[Values]) -> Result<()> {
        let prepared = self.prepared.clone();
        let places: Vec<usize> = batch
            .iter()
            .flat_map(|&row| prepared.places[prepared.first[row]..prepared.first[row + 1]].iter().copied())
            .collect();
        let each = job.points().iter().zip(outputs).zip(self.columns.iter_mut().zip(&mut self.statistics));
        for ((kept, output), (column, statistics)) in each {
            match (output, column) {
                (Values::Dense(x), Column::Dense { width, numbers }) => {
                    let x = floats(x)?; // [activation, width]
                    check(kept, &prepared, &x, |n| places[n / *width])?;
                    for (row, &place) in x.chunks_exact(*width).zip(&places) {
                        numbers.write(place * *width, row);
                    }
                    statistics.add(&x, &places);
                }
                (Values::Sparse { offsets, index, value }, Column::Sparse { spans, index: all, value: numbers }) => {
                    let (offsets, index, value) = (integers(offsets)?, integers(index)?, floats(value)?);
                    let mut entries: Vec<Vec<(u32, f32)>> = Vec::with_capacity(places.len());
                    for bounds in offsets.windows(2) {
                        let (from, to) = (bounds[0] as usize, bounds[1] as usize);
                        let mut of_row: Vec<(u32, f32)> = index[from..to]
                            .iter()
                            .map(|&index| index as u32)
                            .zip(value[from..to].iter().copied())
                            .collect();
                        of_row.sort_unstable_by_key(|&(index, _)| index);
                        entries.push(of_row);
                    }
                    for (of_row, &place) in entries.iter().zip(&places) {
                        let values: Vec<f32> = of_row.iter().map(|&(_, value)| value).collect();
                        check(kept, &prepared, &values, |_| place)?;
                        spans[place] = (all.len(), all.len() + of_row.len());
                        all.extend(of_row.iter().map(|&(index, _)| index));
                        numbers.append(&values);
                    }
                    statistics.add_sparse(&entries, &places);
                }
                _ => return Err(Error::Setting("a point's activations are of another form than its column".into())),
            }
        }
        Ok(())
    }
}

/// That a type can hold numbers.
fn check(kept: &KeptPoint, prepared: &Prepared, x: &[f32], place: impl Fn(usize) -> usize) -> Result<()> {
    let most = match kept.dtype {
        DType::Fp16 => 65504.0,
        DType::Fp32 | DType::Bf16 => f32::MAX,
    };
    match x.iter().position(|value| value.is_nan() || value.abs() > most) {
        None => Ok(()),
        Some(n) => Err(Error::Value {
            point: kept.column.clone(),
            value: x[n],
            row: place(n),
            shard: prepared.shard,
            dtype: kept.dtype,
            hint: match x[n].is_finite() {
                true => "store it as bf16 or fp32",
                false => "a model gives it where its own type overflows, so run it in fp32 or bf16",
            },
        }),
    }
}

impl Numbers {
    fn zeros(dtype: DType, len: usize) -> Result<Self> {
        fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(len).map_err(|_| {
                Error::Setting(format!(
                    "a shard of {len} numbers does not fit into memory: plan smaller shards, with `--shard-tokens`"
                ))
            })?;
            zeros.resize(len, T::default());
            Ok(zeros)
        }
        Ok(match dtype {
            DType::Fp32 => Numbers::Fp32(zeros(len)?),
            DType::Fp16 => Numbers::Fp16(zeros(len)?),
            DType::Bf16 => Numbers::Bf16(zeros(len)?),
        })
    }

    fn write(&mut self, at: usize, x: &[f32]) {
        match self {
            Numbers::Fp32(numbers) => numbers[at..at + x.len()].copy_from_slice(x),
            Numbers::Fp16(numbers) => {
                numbers[at..].iter_mut().zip(x).for_each(|(number, &x)| *number = f16::from_f32(x));
            }
            Numbers::Bf16(numbers) => {
                numbers[at..].iter_mut().zip(x).for_each(|(number, &x)| *number = bf16::from_f32(x));
            }
        }
    }

    fn append(&mut self, x: &[f32]) {
        match self {
            Numbers::Fp32(numbers) => numbers.extend_from_slice(x),
            Numbers::Fp16(numbers) => numbers.extend(x.iter().map(|&x| f16::from_f32(x))),
            Numbers::Bf16(numbers) => numbers.extend(x.iter().map(|&x| bf16::from_f32(x))),
        }
    }

    /// These numbers in another order.
    pub(crate) fn gathered(&self, spans: &[(usize, usize)]) -> Numbers {
        fn gather<T: Copy>(numbers: &[T], spans: &[(usize, usize)]) -> Vec<T> {
            spans.iter().flat_map(|&(from, to)| numbers[from..to].iter().copied()).collect()
        }
        match self {
            Numbers::Fp32(numbers) => Numbers::Fp32(gather(numbers, spans)),
            Numbers::Fp16(numbers) => Numbers::Fp16(gather(numbers, spans)),
            Numbers::Bf16(numbers) => Numbers::Bf16(gather(numbers, spans)),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Numbers::Fp32(_) => DType::Fp32,
            Numbers::Fp16(_) => DType::Fp16,
            Numbers::Bf16(_) => DType::Bf16,
        }
    }

    /// Their bytes, little endian as the machine is.
    pub(crate) fn into_buffer(self) -> Buffer {
        match self {
            Numbers::Fp32(numbers) => Buffer::from_vec(numbers),
            Numbers::Fp16(numbers) => Buffer::from_vec(numbers),
            // Arrow has no type for them.
            Numbers::Bf16(numbers) => Buffer::from_vec(numbers.into_iter().map(bf16::to_bits).collect::<Vec<u16>>()),
        }
    }
}
