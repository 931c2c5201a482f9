//! [`ActivationStore`]: shuffled batches of a harvest, for training.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float16Type, Float32Type};
use arrow_array::{Array as _, RecordBatch};
use bytes::Bytes;
use half::bf16;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::ProjectionMask;
use tch_lens::tch::{Device, Tensor};

use crate::job::{checked_file, committed};
use crate::manifest::{Keep, Manifest};
use crate::random::Random;
use crate::{Error, Job, Result, ShardId, Store};

/// Rows that are decoded at once.
const DECODED: usize = 1024;

/// Batches of activations of one point, shuffled over shards, in bounded memory.
///
/// Shards are read one after the other, in an order of the seed, into a buffer of rows. A batch is drawn at random from the buffer, which is
/// filled up again when half of it is gone. So the rows of a batch are from as many shards as half the buffer holds. The same seed gives
/// the same batches. An iterator is one pass over the harvest: [`ActivationStore::epoch`] begins another.
///
/// ```no_run
/// use tch_lens_harvest::{ActivationStore, Store};
/// let store = ActivationStore::open(&Store::open("harvest")?, "blocks.1.hook_resid_post")?.batch_size(512).memory(1 << 30);
/// for batch in store.epoch(0)? {
///     let x = batch?; // [512, d_model], fp32
/// }
/// # Ok::<(), tch_lens_harvest::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ActivationStore {
    store: Store,
    manifest: Arc<Manifest>,
    hash: String,
    column: String,
    batch_size: usize,
    memory: usize,
    device: Device,
}

impl ActivationStore {
    /// The activations of a point that a harvest kept whole, by its full name. Batches have 4,096 rows, on the CPU, and memory is bounded by
    /// 1 GiB, unless said otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`]; [`Error::Setting`] for a point that the harvest does not have.
    pub fn open(store: &Store, point: &str) -> Result<Self> {
        let manifest = Job::manifest_of(store)?;
        let whole = |selection: &&crate::PointSelection| selection.keep == Keep::Whole;
        if !manifest.points.iter().filter(whole).any(|selection| selection.point == point) {
            let names: Vec<String> =
                manifest.points.iter().filter(whole).map(|selection| format!("`{}`", selection.point)).collect();
            let found = if names.is_empty() { "none".into() } else { names.join(", ") };
            let what = format!("the harvest in `{}` does not keep `{point}` whole: it has {found}", store.address());
            return Err(Error::Setting(what));
        }
        if !manifest.formats.contains(&crate::Format::Parquet) {
            return Err(Error::Setting(format!(
                "the harvest in `{}` has no Parquet, which batches are read from: plan it with `--format parquet`",
                store.address()
            )));
        }
        let hash = manifest.hash()?;
        Ok(ActivationStore {
            store: store.clone(),
            manifest: Arc::new(manifest),
            hash,
            column: point.into(),
            batch_size: 4096,
            memory: 1 << 30,
            device: Device::Cpu,
        })
    }

    /// The rows of a batch; the last batch of an epoch may have fewer.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = rows.max(1);
        self
    }

    /// The most bytes that an epoch holds: the buffer and the shard that is read. A shard must leave room for two batches.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// The device that batches go to.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// One pass over the harvest, in an order of this seed.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] for a shard that is not harvested yet; [`Error::Setting`] for memory that does not hold a shard and two batches.
    pub fn epoch(&self, seed: u64) -> Result<Epoch> {
        let mut shards: Vec<ShardId> = self.manifest.shards().collect();
        Random::new(seed, "shards", 0).shuffle(&mut shards);
        let (mut largest, mut rows) = (0, 0);
        let path = |shard: ShardId| shard.parquet_path();
        for &shard in &shards {
            let metadata = committed(&self.store, &self.hash, shard)?.ok_or(Error::Missing { shard })?;
            rows += metadata.activations;
            let size = metadata.files.iter().find(|file| file.path == path(shard)).map_or(0, |file| file.bytes);
            largest = largest.max(size as usize);
        }
        shards.reverse(); // the next one is taken from the end
        let mut epoch = Epoch {
            of: self.clone(),
            shards,
            open: None,
            shard: ShardId(0),
            width: 0,
            buffer: Vec::new(),
            capacity: 0,
            random: Random::new(seed, "batches", 0),
            left: rows,
            failed: false,
        };
        epoch.width = epoch.width_of_first()?;
        let row = 4 * epoch.width;
        epoch.capacity = self.memory.saturating_sub(largest + DECODED * row) / row.max(1);
        if epoch.capacity < 2 * self.batch_size {
            return Err(Error::Setting(format!(
                "{} bytes of memory do not hold a shard of {largest} bytes and two batches of {} bytes: allow {}",
                self.memory,
                row * self.batch_size,
                largest + DECODED * row + 2 * row * self.batch_size
            )));
        }
        Ok(epoch)
    }
}

/// One pass over a harvest: batches `[batch_size, width]`, in fp32.
pub struct Epoch {
    of: ActivationStore,
    /// Those that are not read yet, the next one last.
    shards: Vec<ShardId>,
    open: Option<ParquetRecordBatchReader>,
    /// The shard that is open.
    shard: ShardId,
    width: usize,
    /// Rows that are not shown yet.
    buffer: Vec<f32>,
    /// The most rows of the buffer.
    capacity: usize,
    random: Random,
    /// Rows that are not shown yet, those of shards to come included.
    left: u64,
    failed: bool,
}

impl Epoch {
    /// The width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows that are still to come.
    pub fn rows_left(&self) -> u64 {
        self.left
    }

    /// The bytes of the rows that it holds; never more than the memory that was allowed.
    pub fn held(&self) -> usize {
        4 * self.buffer.capacity()
    }

    fn width_of_first(&mut self) -> Result<usize> {
        while self.open.is_none() {
            if !self.open_next()? {
                return Ok(1);
            }
        }
        let schema = self.open.as_ref().map(arrow_array::RecordBatchReader::schema);
        Ok(match schema.as_ref().map(|schema| schema.field(0).data_type()) {
            Some(arrow_schema::DataType::FixedSizeList(_, width)) => *width as usize,
            Some(arrow_schema::DataType::FixedSizeBinary(bytes)) => *bytes as usize / 2,
            _ => 1,
        })
    }

    /// Opens the next shard; false if there is none.
    fn open_next(&mut self) -> Result<bool> {
        let Some(shard) = self.shards.pop() else { return Ok(false) };
        let ActivationStore { store, hash, column, .. } = &self.of;
        let metadata = committed(store, hash, shard)?.ok_or(Error::Missing { shard })?;
        let bytes: Bytes = checked_file(store, &metadata, &shard.parquet_path())?;
        self.shard = shard;
        self.open = Some(open(bytes, column).map_err(|why| self.broken(shard, &why))?);
        Ok(true)
    }

    fn broken(&self, shard: ShardId, why: &dyn std::fmt::Display) -> Error {
        let file = self.of.store.address_of(&shard.parquet_path());
        Error::Malformed { file, what: "table of activations", why: why.to_string() }
    }

    /// Reads rows until the buffer is full or the harvest ends.
    fn fill(&mut self) -> Result<()> {
        while self.buffer.len() / self.width + DECODED <= self.capacity || self.buffer.is_empty() {
            let Some(reader) = &mut self.open else {
                if !self.open_next()? {
                    break;
                }
                continue;
            };
            match reader.next() {
                None => self.open = None,
                Some(batch) => {
                    let batch = batch.map_err(|why| self.broken(self.shard, &why))?;
                    if self.buffer.capacity() == 0 {
                        let rows = self.capacity.min(self.left as usize) + DECODED.min(self.capacity);
                        self.buffer.reserve_exact(rows.min(self.capacity) * self.width);
                    }
                    append(&mut self.buffer, &batch);
                }
            }
        }
        Ok(())
    }

    /// Draws a batch from the buffer.
    fn draw(&mut self) -> Result<Option<Tensor>> {
        let half = (self.capacity / 2).max(self.of.batch_size);
        if self.buffer.len() / self.width < half {
            self.fill()?;
        }
        let mut rows = self.buffer.len() / self.width;
        let n = rows.min(self.of.batch_size);
        if n == 0 {
            return Ok(None);
        }
        let width = self.width;
        let mut batch = Vec::with_capacity(n * width);
        for _ in 0..n {
            let drawn = self.random.below(rows);
            batch.extend_from_slice(&self.buffer[drawn * width..(drawn + 1) * width]);
            rows -= 1;
            // The last row takes its place.
            self.buffer.copy_within(rows * width..(rows + 1) * width, drawn * width);
            self.buffer.truncate(rows * width);
        }
        self.left -= n as u64;
        let batch = Tensor::f_from_slice(&batch)?.f_view([n as i64, width as i64])?;
        Ok(Some(batch.f_to_device(self.of.device)?))
    }
}

impl Iterator for Epoch {
    type Item = Result<Tensor>;

    fn next(&mut self) -> Option<Result<Tensor>> {
        if self.failed {
            return None;
        }
        let drawn = self.draw();
        self.failed = drawn.is_err();
        drawn.transpose()
    }
}

fn open(bytes: Bytes, column: &str) -> Result<ParquetRecordBatchReader, parquet::errors::ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let index = builder.schema().index_of(column)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    builder.with_projection(mask).with_batch_size(DECODED).build()
}

/// Adds the rows of the only column, in fp32.
fn append(buffer: &mut Vec<f32>, batch: &RecordBatch) {
    let column = batch.column(0);
    if let Some(lists) = column.as_fixed_size_list_opt() {
        // A slice has the values of all rows, of which some are its own.
        let width = lists.value_length() as usize;
        let range = lists.value_offset(0) as usize..lists.value_offset(0) as usize + lists.len() * width;
        let values = lists.values();
        if let Some(values) = values.as_primitive_opt::<Float32Type>() {
            buffer.extend_from_slice(&values.values()[range]);
        } else if let Some(values) = values.as_primitive_opt::<Float16Type>() {
            buffer.extend(values.values()[range].iter().map(|x| x.to_f32()));
        }
    } else if let Some(bytes) = column.as_fixed_size_binary_opt() {
        for row in bytes.iter().flatten() {
            buffer.extend(row.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()));
        }
    }
}
