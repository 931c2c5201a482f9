//! Parquet files with a column of texts, or of lists of token ids.

use std::io::{self, Read};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int16Type, Int32Type, Int64Type, Int8Type, UInt16Type, UInt32Type, UInt64Type, UInt8Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use bytes::{Buf as _, Bytes};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use sha2::{Digest as _, Sha256};

use super::{half_hash, Content, Document, OpenBlock, Scan};
use crate::manifest::Block;
use crate::store::Source;
use crate::{Error, Result};

/// Rows that are decoded at once.
const BATCH: usize = 64;

/// Scans a file. A block is of one row group.
pub(super) fn scan(file: &Source, number: usize, column: (&str, bool), scan: &mut Scan) -> Result<()> {
    let groups: Vec<u64> =
        builder(file)?.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as u64).collect();
    let mut at = 0;
    for (group, rows) in groups.into_iter().enumerate() {
        let mut open = OpenBlock { start: at, ..OpenBlock::default() };
        visit(file, column, group..group + 1, (0, rows), |contents| {
            for content in contents {
                hash(&mut open.hasher, &content);
                open.documents += 1;
                open.bytes += content.bytes() as u64;
                at += 1;
            }
            if open.bytes >= scan.block_bytes {
                scan.close(number, std::mem::take(&mut open), at);
                open.start = at;
            }
        })?;
        scan.close(number, open, at);
    }
    Ok(())
}

/// Documents of the first row group.
pub(super) fn sample(file: &Source, column: (&str, bool), bytes: usize) -> Result<Vec<Content>> {
    let mut found = Vec::new();
    if builder(file)?.metadata().num_row_groups() > 0 {
        visit(file, column, 0..1, (0, (bytes / 64) as u64), |contents| found.extend(contents))?;
    }
    let mut size = 0;
    found.retain(|content: &Content| {
        size += content.bytes();
        size <= 4 * bytes
    });
    Ok(found)
}

pub(super) fn read(file: &Source, block: &Block, column: (&str, bool)) -> Result<(Vec<Document>, String)> {
    let builder = builder(file)?;
    let (mut first, mut group) = (0, 0);
    for rows in builder.metadata().row_groups() {
        let rows = rows.num_rows().max(0) as u64;
        if block.start < first + rows {
            break;
        }
        first += rows;
        group += 1;
    }
    let (mut documents, mut hasher) = (Vec::new(), Sha256::new());
    if group < builder.metadata().num_row_groups() {
        visit(file, column, group..group + 1, (block.start - first, block.end - block.start), |contents| {
            for content in contents {
                hash(&mut hasher, &content);
                let number = block.first_document + documents.len() as u64;
                documents.push(Document { number, content });
            }
        })?;
    }
    Ok((documents, half_hash(hasher)))
}

fn hash(hasher: &mut Sha256, content: &Content) {
    hasher.update((content.bytes() as u64).to_le_bytes());
    match content {
        Content::Text(text) => hasher.update(text),
        Content::Tokens(tokens) => tokens.iter().for_each(|token| hasher.update(token.to_le_bytes())),
    }
}

fn failed(file: &Source) -> impl Fn(ParquetError) -> Error + '_ {
    |why| Error::Corpus { file: file.address().into(), format: "Parquet".into(), why: why.to_string() }
}

fn builder(file: &Source) -> Result<ParquetRecordBatchReaderBuilder<Source>> {
    ParquetRecordBatchReaderBuilder::try_new(file.clone()).map_err(failed(file))
}

/// Shows the documents of rows of a row group: `(offset, count)` in it.
fn visit(
    file: &Source,
    (column, tokens): (&str, bool),
    groups: std::ops::Range<usize>,
    (offset, count): (u64, u64),
    mut show: impl FnMut(Vec<Content>),
) -> Result<()> {
    let builder = builder(file)?;
    let Some(index) = builder.schema().fields().iter().position(|field| field.name() == column) else {
        let names: Vec<String> = builder.schema().fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let found = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(Error::MissingColumn { file: file.address().into(), column: column.into(), found });
    };
    let mask = ProjectionMask::roots(builder.parquet_schema(), [index]);
    let reader = builder
        .with_projection(mask)
        .with_row_groups(groups.collect())
        .with_offset(offset as usize)
        .with_limit(count as usize)
        .with_batch_size(BATCH)
        .build()
        .map_err(failed(file))?;
    for batch in reader {
        let batch: RecordBatch = batch.map_err(|why| failed(file)(why.into()))?;
        show(contents(file, column, batch.column(0), tokens)?);
    }
    Ok(())
}

/// The documents of a column. A missing one has no text.
fn contents(file: &Source, column: &str, array: &ArrayRef, tokens: bool) -> Result<Vec<Content>> {
    let wrong = || {
        let (expected, hint) = match tokens {
            true => ("lists of whole numbers", ""),
            false => ("texts", "; for lists of token ids say `--tokenised`"),
        };
        Error::Corpus {
            file: file.address().into(),
            format: "Parquet".into(),
            why: format!("its column `{column}` has {}, and not {expected}{hint}", array.data_type()),
        }
    };
    let text = |text: Option<&str>| Content::Text(text.unwrap_or_default().into());
    match (array.data_type(), tokens) {
        (DataType::Utf8, false) => Ok(array.as_string::<i32>().iter().map(text).collect()),
        (DataType::LargeUtf8, false) => Ok(array.as_string::<i64>().iter().map(text).collect()),
        (DataType::Utf8View, false) => Ok(array.as_string_view().iter().map(text).collect()),
        (DataType::List(_), true) => lists(array.as_list::<i32>().iter()).ok_or_else(wrong),
        (DataType::LargeList(_), true) => lists(array.as_list::<i64>().iter()).ok_or_else(wrong),
        (DataType::FixedSizeList(..), true) => lists(array.as_fixed_size_list().iter()).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn lists(lists: impl Iterator<Item = Option<ArrayRef>>) -> Option<Vec<Content>> {
    lists.map(|list| Some(Content::Tokens(list.as_ref().map_or(Some(Vec::new()), numbers)?))).collect()
}

/// Whole numbers of any type; `None` for other types, and for a list with a missing number.
fn numbers(array: &ArrayRef) -> Option<Vec<i64>> {
    macro_rules! of {
        ($($name:ident $type:ty),*) => {
            match array.data_type() {
                _ if array.null_count() > 0 => None,
                $(DataType::$name => array.as_primitive::<$type>().values().iter().map(|&n| n.try_into().ok()).collect(),)*
                _ => None,
            }
        };
    }
    of!(
        Int8 Int8Type, Int16 Int16Type, Int32 Int32Type, Int64 Int64Type,
        UInt8 UInt8Type, UInt16 UInt16Type, UInt32 UInt32Type, UInt64 UInt64Type
    )
}

/// What is fetched at once of a part whose length is not known.
const AHEAD: u64 = 1 << 20;

/// The bytes of a file from a place on.
pub(crate) struct FromPlace {
    file: Source,
    at: u64,
    fetched: Bytes,
}

impl Read for FromPlace {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.fetched.is_empty() && self.at < self.file.bytes() {
            let end = (self.at + AHEAD).min(self.file.bytes());
            self.fetched = self.file.range(self.at..end).map_err(io::Error::other)?;
            self.at = end;
        }
        let len = into.len().min(self.fetched.len());
        self.fetched.split_to(len).copy_to_slice(&mut into[..len]);
        Ok(len)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.bytes()
    }
}

impl ChunkReader for Source {
    type T = FromPlace;

    fn get_read(&self, start: u64) -> Result<FromPlace, ParquetError> {
        Ok(FromPlace { file: self.clone(), at: start, fetched: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.range(start..start + length as u64).map_err(|why| ParquetError::External(Box::new(why)))
    }
}
