//! What the model reads for a shard: documents as tokens, tokens as rows, rows in batches.

mod rows;

use tch_lens::Tokenizer;

pub(crate) use self::rows::Token;
use crate::corpus::{Content, Corpus, Document};
use crate::manifest::Manifest;
use crate::random::Random;
use crate::{Error, Result, ShardId};

/// A shard before the model runs.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) shard: ShardId,
    /// The number of documents that were read.
    pub(crate) documents: u64,
    pub(crate) rows: Vec<Vec<Token>>,
    /// The rows of each run, of like lengths.
    pub(crate) batches: Vec<Vec<usize>>,
    /// The positions of each row at which activations are kept.
    pub(crate) kept: Vec<Vec<usize>>,
    /// The number of the first activation of each row, and the number of all.
    pub(crate) first: Vec<usize>,
    /// The place in the files of each activation.
    pub(crate) places: Vec<usize>,
}

impl Prepared {
    /// The number of activations that are kept.
    pub(crate) fn activations(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }
}

/// That the context and what stands around documents fit the tokenizer.
pub(crate) fn check(manifest: &Manifest, tokenizer: Option<&Tokenizer>) -> Result<()> {
    rows::Cutter::new(manifest, tokenizer).map(|_| ())
}

/// Reads and tokenises a shard.
pub(crate) fn prepare(
    manifest: &Manifest,
    corpus: &Corpus,
    tokenizer: Option<&Tokenizer>,
    shard: ShardId,
) -> Result<Prepared> {
    let mut documents = 0;
    let mut cutter = rows::Cutter::new(manifest, tokenizer)?;
    for block in &manifest.shard(shard)?.blocks {
        for document in corpus.read(block)? {
            documents += 1;
            cutter.add(document.number, tokens(&document, tokenizer)?)?;
        }
    }
    let rows = cutter.finish();
    let bos = tokenizer.and_then(Tokenizer::bos_id);
    let kept: Vec<Vec<usize>> = rows
        .iter()
        .map(|row| {
            let mut kept = manifest.positions.of_row(row.len());
            if manifest.positions.without_bos {
                kept.retain(|&position| Some(row[position].id) != bos);
            }
            kept
        })
        .collect();
    let mut first = Vec::with_capacity(rows.len() + 1);
    let mut count = 0;
    for of_row in &kept {
        first.push(count);
        count += of_row.len();
    }
    first.push(count);
    let mut places: Vec<usize> = (0..count).collect();
    if manifest.shuffle {
        Random::new(manifest.seed, "rows", u64::from(shard.0)).shuffle(&mut places);
    }
    let batches = batches(&rows, manifest.batch_tokens);
    Ok(Prepared { shard, documents, rows, batches, kept, first, places })
}

/// The tokens of a document, without BOS and EOS, each with its place in the text.
fn tokens(document: &Document, tokenizer: Option<&Tokenizer>) -> Result<Vec<Token>> {
    let number = document.number;
    match &document.content {
        Content::Tokens(ids) => Ok(ids.iter().map(|&id| Token { id, document: number, text: None }).collect()),
        Content::Text(text) => {
            let tokenizer = tokenizer.ok_or_else(|| {
                Error::Setting(
                    "the model has no tokenizer, which a corpus of texts needs: give one, or a tokenised corpus".into(),
                )
            })?;
            let spans = tokenizer
                .encode_spans(text, false)
                .map_err(|source| Error::Tokens { document: number, source: Box::new(source) })?;
            let token = |span: tch_lens::TokenSpan| Token {
                id: span.id,
                document: number,
                text: Some((span.bytes.start as u64, span.bytes.end as u64)),
            };
            Ok(spans.into_iter().map(token).collect())
        }
    }
}

/// Rows of like lengths, the longest first, as many as `batch_tokens` tokens hold with padding, at least one.
fn batches(rows: &[Vec<Token>], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(rows[row].len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for row in order {
        match batches.last_mut() {
            Some(batch) if rows[batch[0]].len() * (batch.len() + 1) <= batch_tokens => batch.push(row),
            _ => batches.push(vec![row]),
        }
    }
    batches
}
