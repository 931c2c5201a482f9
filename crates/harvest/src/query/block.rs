//! [`Block`]: a batch of activations of one column, and where each is from.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{Array as _, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_buffer::OffsetBuffer;
use datafusion::prelude::SessionContext;

use super::floats::{floats, numbers};
use super::Example;
use crate::engine::{block_on, from_engine};
use crate::{Error, Result, ShardId};

/// The columns that say where an activation is from.
pub(super) const PLACE: [&str; 7] = ["shard", "row", "position", "token", "document", "text_start", "text_end"];

/// How a column is stored.
pub(super) enum Kind {
    Dense(String),
    Sparse(String),
}

impl Kind {
    /// The form of a column of the table `activations`: of a point that is there whole and sparse, whole, unless `.index` or `.value` is asked
    /// for.
    pub(super) fn of(context: &SessionContext, column: &str, columns: &[&str]) -> Result<Self> {
        let table = block_on(1, async { context.table("activations").await.map_err(from_engine) })?;
        let has = |name: &str| table.schema().fields().iter().any(|field| field.name() == name);
        let entries = column.strip_suffix(".index").or_else(|| column.strip_suffix(".value")).unwrap_or(column);
        if has(column) && entries == column && !PLACE.contains(&column) {
            Ok(Kind::Dense(column.into()))
        } else if has(&format!("{entries}.index")) {
            Ok(Kind::Sparse(entries.into()))
        } else {
            let columns = columns.join("`, `");
            Err(Error::Setting(format!("the harvest has no point `{column}`: it has `{columns}`")))
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Kind::Dense(name) => vec![name.clone()],
            Kind::Sparse(name) => vec![format!("{name}.index"), format!("{name}.value")],
        }
    }
}

/// A batch of activations of one column.
pub(super) struct Block {
    shard: UInt32Array,
    row: UInt32Array,
    position: UInt32Array,
    token: UInt32Array,
    document: UInt64Array,
    text: [UInt64Array; 2],
    numbers: Numbers,
}

/// The activations themselves.
pub(super) enum Numbers {
    Dense { width: usize, values: Float32Array },
    Sparse { offsets: OffsetBuffer<i32>, index: UInt32Array, value: Float32Array },
}

impl Block {
    /// A batch whose columns are [`PLACE`] and one or two of a point.
    pub(super) fn of(batch: &RecordBatch) -> Result<Self> {
        let small = |at: usize| batch.column(at).as_primitive::<UInt32Type>().clone();
        let large = |at: usize| batch.column(at).as_primitive::<UInt64Type>().clone();
        let point = &batch.columns()[PLACE.len()..];
        let numbers = match point {
            [dense] => {
                let lists = floats(dense).map_err(from_engine)?;
                let lists = lists.as_fixed_size_list();
                Numbers::Dense { width: lists.value_length().max(0) as usize, values: numbers(lists.values()) }
            }
            [index, value] => {
                let (index, value) = (index.as_list::<i32>(), floats(value).map_err(from_engine)?);
                Numbers::Sparse {
                    offsets: index.offsets().clone(),
                    index: index.values().as_primitive::<UInt32Type>().clone(),
                    value: numbers(value.as_list::<i32>().values()),
                }
            }
            _ => return Err(Error::Engine("a batch has no column of a point".into())),
        };
        Ok(Block {
            shard: small(0),
            row: small(1),
            position: small(2),
            token: small(3),
            document: large(4),
            text: [large(5), large(6)],
            numbers,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.shard.len()
    }

    /// The number of channels, as far as the batch tells.
    pub(super) fn width(&self) -> Option<usize> {
        match &self.numbers {
            Numbers::Dense { width, .. } => Some(*width),
            Numbers::Sparse { .. } => None,
        }
    }

    /// That a column has a channel.
    pub(super) fn check(&self, channel: usize) -> Result<()> {
        match self.width() {
            Some(width) if channel >= width => Err(Error::Setting(format!(
                "the point has {width} channels, numbered from 0, and no channel {channel}"
            ))),
            _ => Ok(()),
        }
    }

    /// An activation's number in a channel; 0 where a sparse one has none.
    pub(super) fn value(&self, at: usize, channel: usize) -> f32 {
        match &self.numbers {
            Numbers::Dense { width, values } => values.value(at * width + channel),
            Numbers::Sparse { offsets, index, value } => {
                let (from, to) = (offsets[at] as usize, offsets[at + 1] as usize);
                let place = index.values()[from..to].binary_search(&(channel as u32));
                place.map_or(0.0, |place| value.value(from + place))
            }
        }
    }

    /// Shows the channels of an activation whose numbers are there, with the numbers.
    pub(super) fn entries(&self, at: usize, mut show: impl FnMut(usize, f32)) {
        match &self.numbers {
            Numbers::Dense { width, values } => {
                let row = &values.values()[at * width..(at + 1) * width];
                row.iter().enumerate().for_each(|(channel, &value)| show(channel, value));
            }
            Numbers::Sparse { offsets, index, value } => {
                for place in offsets[at] as usize..offsets[at + 1] as usize {
                    show(index.value(place) as usize, value.value(place));
                }
            }
        }
    }

    /// Where an activation is from, with a number of it.
    pub(super) fn example(&self, at: usize, value: f32) -> Example {
        let [start, end] = &self.text;
        Example {
            value,
            shard: ShardId(self.shard.value(at)),
            row: self.row.value(at),
            position: self.position.value(at),
            token: self.token.value(at),
            document: self.document.value(at),
            text: (start.is_valid(at) && end.is_valid(at)).then(|| (start.value(at), end.value(at))),
        }
    }

    pub(super) fn document(&self, at: usize) -> u64 {
        self.document.value(at)
    }
}
