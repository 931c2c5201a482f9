//! Corpora: documents in files of text, JSON lines or Parquet, on the local disk or in an object store.

mod lines;
mod parquet_file;

use sha2::{Digest as _, Sha256};

use crate::manifest::{hex, Block, CorpusFile, CorpusFormat, CorpusIdentity};
use crate::store::Source;
use crate::{Error, Result};

/// A document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// Its number in the corpus.
    pub(crate) number: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Text(String),
    Tokens(Vec<i64>),
}

impl Content {
    /// Its size: the bytes of a text, or 4 for each token.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Content::Text(text) => text.len(),
            Content::Tokens(tokens) => 4 * tokens.len(),
        }
    }
}

/// The files of a corpus, open.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    format: CorpusFormat,
    files: Vec<Source>,
}

/// A corpus that was read once, with its blocks in order.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) identity: CorpusIdentity,
    pub(crate) blocks: Vec<Block>,
    /// The size of each block's documents, as [`Content::bytes`] counts.
    pub(crate) sizes: Vec<u64>,
}

/// A block while a file is scanned.
#[derive(Debug, Default)]
struct OpenBlock {
    start: u64,
    documents: u64,
    bytes: u64,
    hasher: Sha256,
}

impl Corpus {
    /// The files at these addresses. Paths become absolute, so that workers find them from any folder.
    pub(crate) fn open(format: CorpusFormat, addresses: &[String]) -> Result<Self> {
        let files = addresses.iter().map(|address| Source::open(address)).collect::<Result<_>>()?;
        Ok(Corpus { format, files })
    }

    /// The corpus of a manifest.
    ///
    /// # Errors
    ///
    /// [`Error::CorpusChanged`] for files of other sizes.
    pub(crate) fn of(identity: &CorpusIdentity) -> Result<Self> {
        let addresses: Vec<String> = identity.files.iter().map(|file| file.address.clone()).collect();
        let corpus = Corpus::open(identity.format.clone(), &addresses)?;
        for (expected, found) in identity.files.iter().zip(&corpus.files) {
            if expected.bytes != found.bytes() {
                let why = format!("it had {} bytes and has {}", expected.bytes, found.bytes());
                return Err(Error::CorpusChanged { file: expected.address.clone(), why });
            }
        }
        Ok(corpus)
    }

    /// Reads all of it once, checks it, and cuts it into blocks of about `block_bytes`.
    pub(crate) fn scan(&self, block_bytes: u64) -> Result<Scanned> {
        let mut scan = Scan { block_bytes, documents: 0, blocks: Vec::new(), sizes: Vec::new() };
        for (number, file) in self.files.iter().enumerate() {
            match &self.format {
                CorpusFormat::Text => lines::scan_text(file, number, &mut scan)?,
                CorpusFormat::Lines | CorpusFormat::JsonLines { .. } => {
                    lines::scan(file, number, &self.format, &mut scan)?
                }
                CorpusFormat::Parquet { column, tokens } => {
                    parquet_file::scan(file, number, (column, *tokens), &mut scan)?
                }
            }
        }
        if scan.sizes.iter().sum::<u64>() == 0 {
            let files = match &self.files[..] {
                [] => "no files".into(),
                [one] => format!("`{}`", one.address()),
                [first, .., last] => {
                    format!("{} files, `{}` to `{}`,", self.files.len(), first.address(), last.address())
                }
            };
            return Err(Error::EmptyCorpus { files });
        }
        let mut hasher = Sha256::new();
        scan.blocks.iter().for_each(|block| hasher.update(&block.hash));
        let file = |file: &Source| CorpusFile { address: file.address().into(), bytes: file.bytes() };
        let identity = CorpusIdentity {
            format: self.format.clone(),
            files: self.files.iter().map(file).collect(),
            documents: scan.documents,
            hash: hex(&hasher.finalize()),
        };
        Ok(Scanned { identity, blocks: scan.blocks, sizes: scan.sizes })
    }

    /// The first documents, of at least `bytes` in all if there are so many.
    pub(crate) fn sample(&self, bytes: usize) -> Result<Vec<Content>> {
        let (mut sample, mut size) = (Vec::new(), 0);
        for file in &self.files {
            if size >= bytes {
                break;
            }
            let found = match &self.format {
                CorpusFormat::Text => lines::sample_text(file, bytes)?,
                CorpusFormat::Lines | CorpusFormat::JsonLines { .. } => {
                    lines::sample(file, &self.format, bytes - size)?
                }
                CorpusFormat::Parquet { column, tokens } => {
                    parquet_file::sample(file, (column, *tokens), bytes - size)?
                }
            };
            size += found.iter().map(Content::bytes).sum::<usize>();
            sample.extend(found);
        }
        Ok(sample)
    }

    /// The documents of a block.
    ///
    /// # Errors
    ///
    /// [`Error::CorpusChanged`] if they are not those that were scanned.
    pub(crate) fn read(&self, block: &Block) -> Result<Vec<Document>> {
        let changed = |file: &str, why: &str| Error::CorpusChanged { file: file.into(), why: why.into() };
        let file =
            self.files.get(block.file).ok_or_else(|| changed("manifest.json", "it names a file without a number"))?;
        let (documents, hash) = match &self.format {
            CorpusFormat::Text => lines::read_text(file, block)?,
            CorpusFormat::Lines | CorpusFormat::JsonLines { .. } => lines::read(file, block, &self.format)?,
            CorpusFormat::Parquet { column, tokens } => parquet_file::read(file, block, (column, *tokens))?,
        };
        if hash != block.hash {
            return Err(changed(file.address(), "its bytes differ"));
        }
        Ok(documents)
    }
}

/// What a scan has found so far.
struct Scan {
    block_bytes: u64,
    documents: u64,
    blocks: Vec<Block>,
    sizes: Vec<u64>,
}

impl Scan {
    /// Ends a block at `end`, if it has documents.
    fn close(&mut self, file: usize, open: OpenBlock, end: u64) {
        if open.documents > 0 {
            self.blocks.push(Block {
                file,
                start: open.start,
                end,
                first_document: self.documents,
                documents: open.documents,
                hash: half_hash(open.hasher),
            });
            self.sizes.push(open.bytes);
            self.documents += open.documents;
        }
    }
}

/// The first half of a SHA-256, in 32 hexadecimal digits.
fn half_hash(hasher: Sha256) -> String {
    let mut hash = hex(&hasher.finalize());
    hash.truncate(32);
    hash
}
