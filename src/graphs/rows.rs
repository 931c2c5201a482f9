//! [`RowStore`]: the edges of each target, in memory up to a budget and on disk beyond it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::columns::{Columns, Place};
use crate::{Error, Result};

/// The edges into one target.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) position: usize,
    /// The sum of the edges from sources that were left out.
    pub(super) left_out: f64,
    /// What biases and other constants add.
    pub(super) constant: f64,
    /// What the target reads in the run.
    pub(super) value: f64,
}

/// Where the edges of a row are.
#[derive(Debug)]
enum Edges {
    Memory(Vec<f32>),
    Disk { offset: u64, len: usize },
}

/// The edges of targets: of each one only those from sources that come before it and stand at its position or before.
#[derive(Debug)]
pub(super) struct RowStore {
    rows: Vec<(Row, Edges)>,
    /// The bytes that may be in memory.
    budget: u64,
    in_memory: u64,
    file: Option<TemporaryFile>,
}

impl RowStore {
    pub(super) fn new(budget: Option<u64>) -> Self {
        RowStore { rows: Vec::new(), budget: budget.unwrap_or(u64::MAX), in_memory: 0, file: None }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn row(&self, index: usize) -> &Row {
        &self.rows[index].0
    }

    /// The bytes of edges in memory, and those on disk.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.in_memory, self.file.as_ref().map_or(0, |file| file.len))
    }

    /// # Errors
    ///
    /// [`Error::Io`] where the disk refuses what does not fit into memory.
    pub(super) fn push(&mut self, row: Row, edges: Vec<f32>) -> Result<()> {
        let bytes = 4 * edges.len() as u64;
        if self.in_memory.saturating_add(bytes) <= self.budget {
            self.in_memory += bytes;
            self.rows.push((row, Edges::Memory(edges)));
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(TemporaryFile::new()?),
        };
        let offset = file.append(&edges)?;
        self.rows.push((row, Edges::Disk { offset, len: edges.len() }));
        Ok(())
    }

    /// Calls `f` with the edges of a row.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where edges on disk cannot be read.
    pub(super) fn with<T>(&self, index: usize, f: impl FnOnce(&Row, &[f32]) -> T) -> Result<T> {
        let (row, edges) = &self.rows[index];
        match (edges, &self.file) {
            (Edges::Memory(edges), _) => Ok(f(row, edges)),
            (Edges::Disk { offset, len }, Some(file)) => Ok(f(row, &file.read(*offset, *len)?)),
            (Edges::Disk { .. }, None) => Err(Error::Internal("a graph's rows have lost their file")),
        }
    }

    /// Calls `f` with each edge of a row that is not zero: the number of its source, and the edge.
    pub(super) fn for_each(&self, index: usize, columns: &Columns, f: impl FnMut(usize, f32)) -> Result<()> {
        self.with(index, |row, edges| visit(row, edges, columns, f))
    }
}

/// Calls `f` with each edge that is not zero: the number of its source, and the edge.
pub(super) fn visit(row: &Row, edges: &[f32], columns: &Columns, mut f: impl FnMut(usize, f32)) {
    let mut rest = edges;
    for (group, n) in columns.support(row.place, row.position) {
        let (edges, others) = rest.split_at(n.min(rest.len()));
        rest = others;
        for (i, edge) in edges.iter().enumerate().filter(|(_, edge)| **edge != 0.0) {
            f(group.first + i, *edge);
        }
    }
}

/// A file that is gone with its owner.
#[derive(Debug)]
struct TemporaryFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl TemporaryFile {
    fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = std::env::temp_dir();
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("tch-lens-graph-{}-{number}", std::process::id()));
            match File::options().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(TemporaryFile { path, file, len: 0 }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(path)(error)),
            }
        }
    }

    fn append(&mut self, numbers: &[f32]) -> Result<u64> {
        let offset = self.len;
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(&bytes))
            .map_err(Error::io(&self.path))?;
        self.len += bytes.len() as u64;
        Ok(offset)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0u8; 4 * len];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(Error::io(&self.path))?;
        let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(bytes.chunks_exact(4).map(number).collect())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}
