//! Files of text and of JSON lines.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{half_hash, Content, Document, OpenBlock, Scan};
use crate::manifest::{Block, CorpusFormat};
use crate::store::Source;
use crate::{Error, Result};

/// What is read at once.
const CHUNK: u64 = 4 << 20;

/// Scans a file that is one document.
pub(super) fn scan_text(file: &Source, number: usize, scan: &mut Scan) -> Result<()> {
    let bytes = file.range(0..file.bytes())?;
    let text = utf8(file, &bytes, 0)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let mut hasher = Sha256::new();
    hasher.update(&bytes);
    scan.close(number, OpenBlock { start: 0, documents: 1, bytes: text.len() as u64, hasher }, file.bytes());
    Ok(())
}

pub(super) fn read_text(file: &Source, block: &Block) -> Result<(Vec<Document>, String)> {
    let bytes = file.range(block.start..block.end)?;
    let content = Content::Text(utf8(file, &bytes, 0)?.into());
    Ok((vec![Document { number: block.first_document, content }], half_hash(Sha256::new_with_prefix(&bytes))))
}

/// The beginning of a file that is one document.
pub(super) fn sample_text(file: &Source, bytes: usize) -> Result<Vec<Content>> {
    let part = file.range(0..file.bytes().min(bytes as u64))?;
    Ok(vec![Content::Text(String::from_utf8_lossy(&part).into_owned())])
}

/// The first documents of a file, as far as they lie in its first `bytes`, or its first chunk.
pub(super) fn sample(file: &Source, format: &CorpusFormat, bytes: usize) -> Result<Vec<Content>> {
    let part = file.range(0..file.bytes().min(CHUNK.max(bytes as u64)))?;
    let (mut found, mut size, mut at) = (Vec::new(), 0, 0);
    for line in part.split_inclusive(|&byte| byte == b'\n') {
        let whole = line.ends_with(b"\n") || at + line.len() as u64 == file.bytes();
        if size >= bytes || !whole {
            break;
        }
        if let Some(content) = document(file, line, at, format)? {
            size += content.bytes();
            found.push(content);
        }
        at += line.len() as u64;
    }
    Ok(found)
}

/// Scans a file whose lines are documents.
pub(super) fn scan(file: &Source, number: usize, format: &CorpusFormat, scan: &mut Scan) -> Result<()> {
    let (mut pending, mut read): (Vec<u8>, u64) = (Vec::new(), 0);
    let mut open = OpenBlock::default();
    // Where the pending bytes begin in the file.
    let mut at = 0;
    while at < file.bytes() {
        let until = (read + CHUNK).min(file.bytes());
        pending.extend_from_slice(&file.range(read..until)?);
        read = until;
        let whole = match pending.iter().rposition(|&byte| byte == b'\n') {
            _ if read == file.bytes() => pending.len(),
            Some(last) => last + 1,
            None => continue,
        };
        for line in pending[..whole].split_inclusive(|&byte| byte == b'\n') {
            open.hasher.update(line);
            if let Some(content) = document(file, line, at, format)? {
                open.documents += 1;
                open.bytes += content.bytes() as u64;
            }
            at += line.len() as u64;
            if open.bytes >= scan.block_bytes {
                scan.close(number, std::mem::take(&mut open), at);
                open.start = at;
            }
        }
        pending.drain(..whole);
    }
    scan.close(number, open, at);
    Ok(())
}

pub(super) fn read(file: &Source, block: &Block, format: &CorpusFormat) -> Result<(Vec<Document>, String)> {
    let bytes = file.range(block.start..block.end)?;
    let hash = half_hash(Sha256::new_with_prefix(&bytes));
    if hash != block.hash {
        return Ok((Vec::new(), hash)); // lines that were cut elsewhere would give a less helpful error
    }
    let (mut documents, mut at) = (Vec::new(), block.start);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if let Some(content) = document(file, line, at, format)? {
            let number = block.first_document + documents.len() as u64;
            documents.push(Document { number, content });
        }
        at += line.len() as u64;
    }
    Ok((documents, hash))
}

/// The document of a line, which begins at byte `at` of the file; none of a blank line.
fn document(file: &Source, line: &[u8], at: u64, format: &CorpusFormat) -> Result<Option<Content>> {
    let text = utf8(file, line, at)?.trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Ok(None);
    }
    let CorpusFormat::JsonLines { column, tokens } = format else { return Ok(Some(Content::Text(text.into()))) };
    let wrong = |why: String| Error::Corpus {
        file: file.address().into(),
        format: format.words().into(),
        why: format!("the line at byte {at} {why}"),
    };
    let value: Value = serde_json::from_str(text).map_err(|why| wrong(format!("is no JSON: {why}")))?;
    let Value::Object(mut fields) = value else { return Err(wrong("is no JSON object".into())) };
    let found = match fields.remove(column) {
        Some(value) => value,
        None => {
            let names: Vec<String> = fields.keys().map(|name| format!("`{name}`")).collect();
            let found = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Error::MissingColumn { file: file.address().into(), column: column.clone(), found });
        }
    };
    match (found, tokens) {
        (Value::Null, _) => Ok(Some(Content::Text(String::new()))),
        (Value::String(text), false) => Ok(Some(Content::Text(text))),
        (Value::Array(ids), true) => {
            let ids = ids.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
            Ok(Some(Content::Tokens(
                ids.ok_or_else(|| wrong(format!("has a `{column}` with what is no whole number")))?,
            )))
        }
        (_, false) => Err(wrong(format!("has a `{column}` that is no text; for lists of token ids say `--tokenised`"))),
        (_, true) => Err(wrong(format!("has a `{column}` that is no list of token ids"))),
    }
}

fn utf8<'b>(file: &Source, bytes: &'b [u8], at: u64) -> Result<&'b str> {
    std::str::from_utf8(bytes).map_err(|why| Error::Corpus {
        file: file.address().into(),
        format: "a text".into(),
        why: format!("byte {} is not UTF-8; convert the file, or leave it out", at + why.valid_up_to() as u64),
    })
}
