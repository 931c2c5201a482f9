//! [`PlanOptions`]: from a model, a corpus and what is wanted to a manifest.

use tch_lens::HookedTransformer;

use crate::corpus::{Content, Corpus};
use crate::job::{dictionary_hash, load_dictionary, resolve, tokenizer_hash};
use crate::manifest::{
    Boundaries, CorpusFormat, DType, Format, Keep, Manifest, ModelIdentity, PointSelection, PositionSelection, Rows,
    TokenShard, FORMAT_VERSION,
};
use crate::random::Random;
use crate::{Error, Result};

/// About how many parts of the corpus a shard is of, where documents are spread over shards.
const BLOCKS_PER_SHARD: u64 = 16;
/// What of the corpus is tokenised to learn how long tokens are.
const SAMPLE: usize = 1 << 16;

/// What a harvest is to keep, and how.
///
/// ```
/// use tch_lens::HookedTransformer;
/// use tch_lens_harvest::{manifest::CorpusFormat, DType, Job, PlanOptions, Store, harvest};
/// let folder = tempfile::tempdir()?;
/// let corpus = folder.path().join("corpus.txt");
/// std::fs::write(&corpus, "The capital of France is Paris.\nThe keys near the cabinet are\n")?;
/// let model = HookedTransformer::toy()?;
/// let manifest = PlanOptions::new("toy")
///     .point("blocks.1.hook_resid_post", DType::Fp32)
///     .plan(&model, CorpusFormat::Lines, &[corpus.display().to_string()])?;
/// let store = Store::open(&folder.path().join("harvest").display().to_string())?;
/// let job = Job::new(manifest, model, store)?;
/// let shards = harvest(&job, job.manifest().shards(), |_| ())?;
/// assert_eq!(shards[0].documents, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PlanOptions {
    source: String,
    processed: bool,
    points: Vec<(PointSelection, bool)>,
    positions: PositionSelection,
    rows: Rows,
    context: Option<usize>,
    boundaries: Option<Boundaries>,
    allow_unknown: bool,
    formats: Vec<Format>,
    seed: u64,
    shuffle: bool,
    batch_tokens: usize,
    shard_tokens: usize,
}

impl PlanOptions {
    /// A harvest of the model that workers load from `source`: `toy`, a folder, or a name on the hub. Rows are packed and shuffled, and
    /// kept at all positions, in Parquet.
    pub fn new(source: impl Into<String>) -> Self {
        PlanOptions {
            source: source.into(),
            processed: true,
            points: Vec::new(),
            positions: PositionSelection::all(),
            rows: Rows::Packed,
            context: None,
            boundaries: None,
            allow_unknown: false,
            formats: vec![Format::Parquet],
            seed: 0,
            shuffle: true,
            batch_tokens: 4096,
            shard_tokens: 1 << 15,
        }
    }

    /// Says that the model was loaded without processing of its weights.
    pub fn no_processing(mut self) -> Self {
        self.processed = false;
        self
    }

    /// Keeps an activation whole.
    pub fn point(self, point: impl Into<String>, dtype: DType) -> Self {
        self.keep(PointSelection { point: point.into(), dtype, keep: Keep::Whole })
    }

    /// Keeps the `k` largest entries of an activation.
    pub fn top_k(self, point: impl Into<String>, dtype: DType, k: usize) -> Self {
        self.keep(PointSelection { point: point.into(), dtype, keep: Keep::TopK { k } })
    }

    /// Keeps the active features of the dictionary in a file or folder, which reads the point.
    pub fn dictionary(mut self, point: impl Into<String>, dtype: DType, source: impl Into<String>) -> Self {
        let keep = Keep::Dictionary { source: source.into(), hash: String::new() };
        self.points.push((PointSelection { point: point.into(), dtype, keep }, true));
        self
    }

    fn keep(mut self, selection: PointSelection) -> Self {
        self.points.push((selection, false));
        self
    }

    /// The positions at which activations are kept; all, unless said otherwise.
    pub fn positions(mut self, positions: PositionSelection) -> Self {
        self.positions = positions;
        self
    }

    /// How documents become rows; packed, unless said otherwise.
    pub fn rows(mut self, rows: Rows) -> Self {
        self.rows = rows;
        self
    }

    /// The most tokens of a row; the model's context, unless said otherwise.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// What stands before and after documents; BOS before documents and rows where the model's default is to put it before texts, and
    /// nothing for a corpus that is tokenised already.
    pub fn boundaries(mut self, boundaries: Boundaries) -> Self {
        self.boundaries = Some(boundaries);
        self
    }

    /// Whether words that the vocabulary does not have become its token for unknown words; they are an error, unless said otherwise.
    pub fn allow_unknown(mut self, yes: bool) -> Self {
        self.allow_unknown = yes;
        self
    }

    /// The files of a shard; Parquet, unless said otherwise.
    pub fn formats(mut self, formats: impl IntoIterator<Item = Format>) -> Self {
        self.formats = formats.into_iter().collect();
        self
    }

    /// The seed of the shuffle; 0, unless said otherwise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether documents are spread over shards and activations shuffled in them; yes, unless said otherwise.
    pub fn shuffle(mut self, yes: bool) -> Self {
        self.shuffle = yes;
        self
    }

    /// The tokens of one run of the model, padding included; 4096, unless said otherwise. It decides the last bits of activations, so it is a
    /// part of the manifest.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// About how many tokens a shard has; 32,768, unless said otherwise. A worker holds about three shards in memory.
    pub fn shard_tokens(mut self, tokens: usize) -> Self {
        self.shard_tokens = tokens;
        self
    }

    /// Reads the corpus once and makes the manifest. Nothing is run.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyCorpus`], [`Error::Corpus`] for what is no text, [`Error::MissingColumn`], [`Error::Setting`] for settings that do not
    /// fit, and those of hook names and dictionaries.
    pub fn plan(self, model: &HookedTransformer, format: CorpusFormat, files: &[String]) -> Result<Manifest> {
        let setting = |what: &str| Err(Error::Setting(what.into()));
        let n_ctx = model.config().n_ctx;
        let context = self.context.unwrap_or(n_ctx);
        if context == 0 || context > n_ctx {
            return Err(Error::Setting(format!(
                "a row has 1 to {n_ctx} tokens, the model's context, and not {context}"
            )));
        }
        if self.batch_tokens == 0 || self.shard_tokens == 0 {
            return setting("a run and a shard have at least one token");
        }
        if self.formats.is_empty() {
            return setting("a shard has at least one format: parquet or safetensors");
        }
        let tokenised = format.is_tokenised();
        let mut points = Vec::new();
        for (mut selection, of_dictionary) in self.points {
            if let (true, Keep::Dictionary { source, hash }) = (of_dictionary, &mut selection.keep) {
                let point = tch_lens::hook::HookName::resolve(selection.point.as_str(), model.config())?;
                *source = absolute(source);
                *hash = dictionary_hash(&load_dictionary(source, point, model)?)?;
            }
            points.push(selection);
        }
        // Names in full, and what cannot be kept is said before the corpus is read.
        let kept = resolve(&points, model)?;
        for (selection, kept) in points.iter_mut().zip(kept) {
            selection.point = kept.column;
        }
        let bos = !tokenised && model.default_prepend_bos() && model.tokenizer()?.bos_id().is_some();
        let boundaries = self.boundaries.unwrap_or(Boundaries {
            bos_before_documents: bos,
            bos_before_rows: bos,
            eos_after_documents: false,
        });
        let corpus = Corpus::open(format, files)?;
        let mut manifest = Manifest {
            format_version: FORMAT_VERSION,
            model: ModelIdentity::of(model, &absolute(&self.source), self.processed)?,
            tokenizer: if tokenised { None } else { Some(tokenizer_hash(model)?) },
            allow_unknown: self.allow_unknown,
            corpus: crate::manifest::CorpusIdentity {
                format: CorpusFormat::Text,
                files: Vec::new(),
                documents: 0,
                hash: String::new(),
            },
            rows: self.rows,
            context,
            boundaries,
            points,
            positions: self.positions,
            formats: self.formats,
            seed: self.seed,
            shuffle: self.shuffle,
            batch_tokens: self.batch_tokens,
            shards: Vec::new(),
        };
        // That boundaries and context fit is known without the corpus.
        crate::prepare::check(&manifest, model.tokenizer().ok())?;
        let shard_bytes = shard_bytes(&corpus, model, self.shard_tokens, tokenised)?;
        let scanned = corpus.scan((shard_bytes / BLOCKS_PER_SHARD).max(1))?;
        let mut blocks: Vec<_> = scanned.blocks.into_iter().zip(scanned.sizes).collect();
        if self.shuffle {
            Random::new(self.seed, "blocks", 0).shuffle(&mut blocks);
        }
        let mut shards: Vec<TokenShard> = Vec::new();
        let mut size = 0;
        for (block, bytes) in blocks {
            match shards.last_mut() {
                Some(shard) if size + bytes / 2 < shard_bytes => shard.blocks.push(block),
                _ => {
                    shards.push(TokenShard { blocks: vec![block] });
                    size = 0;
                }
            }
            size += bytes;
        }
        manifest.corpus = scanned.identity;
        manifest.shards = shards;
        Ok(manifest)
    }
}

/// A path that exists, from the root on, so that workers find it from any folder; another name as it is.
fn absolute(source: &str) -> String {
    match std::path::Path::new(source).exists() {
        true => std::path::absolute(source).map_or(source.into(), |path| path.display().to_string()),
        false => source.into(),
    }
}

/// The bytes of a corpus that have about `tokens` tokens, judged by its first documents.
fn shard_bytes(corpus: &Corpus, model: &HookedTransformer, tokens: usize, tokenised: bool) -> Result<u64> {
    if tokenised {
        return Ok(4 * tokens as u64);
    }
    // Unknown words are told when their document is harvested, with its number.
    let tokenizer = model.tokenizer()?.clone().allow_unknown(true);
    let mut bytes = 0;
    let mut found = 0;
    for content in corpus.sample(SAMPLE)? {
        if let Content::Text(text) = content {
            bytes += text.len();
            found += tokenizer.encode(&text, false)?.len();
        }
    }
    Ok(match found {
        0 => 4 * tokens as u64,
        _ => (bytes as u64 * tokens as u64) / found as u64,
    }
    .max(1))
}
