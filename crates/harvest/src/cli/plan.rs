//! What is to be harvested.

use clap::{Args, ValueEnum};
use tch_lens::tch::Device;
use tch_lens::HookedTransformer;
use tch_lens_harvest::manifest::{Boundaries, CorpusFormat, LongDocuments, PositionSelection, Positions, Rows};
use tch_lens_harvest::{load_model, DType, Error, Format, Manifest, PlanOptions, Result};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The model: toy, a folder, or a name on the hub.
    #[arg(long)]
    model: Option<String>,
    /// The type of the model's weights and activations.
    #[arg(long, default_value = "fp32", value_name = "TYPE")]
    model_dtype: DType,
    /// Leave the weights as the checkpoint has them.
    #[arg(long)]
    no_processing: bool,
    /// The files of the corpus: paths, or URLs of an object store.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    corpus: Vec<String>,
    /// What the files are; by their ending, unless said otherwise.
    #[arg(long, value_enum)]
    corpus_format: Option<Container>,
    /// The field or column of the documents.
    #[arg(long, default_value = "text")]
    column: String,
    /// The column has lists of token ids.
    #[arg(long)]
    tokenised: bool,
    /// A hook point to keep whole, such as blocks.1.hook_resid_post, or resid_post1:fp16 with its type. May be repeated.
    #[arg(long, value_name = "POINT[:TYPE]")]
    point: Vec<String>,
    /// A hook point of which the K largest entries are kept. May be repeated.
    #[arg(long, value_name = "POINT:K[:TYPE]")]
    top_k: Vec<String>,
    /// A hook point and the file or folder of a dictionary that reads it; its active features are kept. May be repeated.
    #[arg(long, value_name = "POINT[:TYPE]=PATH")]
    dictionary: Vec<String>,
    /// The positions of each row: a slice (1:), or numbers (0,5,-1).
    #[arg(long, default_value = ":", allow_hyphen_values = true)]
    positions: String,
    /// Leave out BOS tokens.
    #[arg(long)]
    without_bos: bool,
    /// How documents become rows: packed one after the other, or each in rows of its own.
    #[arg(long, value_enum, default_value = "packed")]
    rows: RowKind,
    /// What is done with a document that is longer than a row, where each has rows of its own.
    #[arg(long, value_enum, default_value = "refuse")]
    long: Long,
    /// The most tokens of a row; the model's context, unless said otherwise.
    #[arg(long)]
    context: Option<usize>,
    /// Where BOS tokens are put; as the model's default says, unless said otherwise.
    #[arg(long, value_enum)]
    bos: Option<BosPlace>,
    /// Put an EOS token after each document.
    #[arg(long)]
    eos: bool,
    /// Let words that the vocabulary does not have become its token for unknown words.
    #[arg(long)]
    allow_unknown: bool,
    /// The files of a shard.
    #[arg(long, default_value = "parquet", value_delimiter = ',', value_name = "parquet,safetensors")]
    format: Vec<Format>,
    /// The seed of the shuffle.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave documents and activations in their order.
    #[arg(long)]
    no_shuffle: bool,
    /// The tokens of one run of the model.
    #[arg(long, default_value_t = 4096)]
    batch_tokens: usize,
    /// About how many tokens a shard has.
    #[arg(long, default_value_t = 1 << 15)]
    shard_tokens: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Container {
    /// A file is a document.
    Text,
    /// A line is a document.
    Lines,
    /// A line is a JSON object.
    Jsonl,
    /// A row is a document.
    Parquet,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RowKind {
    Packed,
    Documents,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Long {
    Refuse,
    Split,
    Truncate,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BosPlace {
    Nowhere,
    Documents,
    Rows,
    Both,
}

impl PlanArgs {
    /// Whether a harvest is described.
    pub(super) fn is_given(&self) -> bool {
        self.model.is_some() || !self.corpus.is_empty() || !self.point.is_empty()
    }

    fn model(&self) -> Result<&str> {
        self.model.as_deref().ok_or_else(|| Error::Setting("name the model, with `--model`".into()))
    }

    pub(super) fn load(&self, device: Device) -> Result<HookedTransformer> {
        load_model(self.model()?, self.model_dtype, !self.no_processing, device)
    }

    pub(super) fn manifest(self, model: &HookedTransformer) -> Result<Manifest> {
        let mut options = PlanOptions::new(self.model()?);
        for point in &self.point {
            let (point, dtype) = typed(point)?;
            options = options.point(point, dtype);
        }
        for top_k in &self.top_k {
            let (rest, dtype) = typed(top_k)?;
            let (point, k) = rest
                .rsplit_once(':')
                .and_then(|(point, k)| Some((point, k.parse().ok()?)))
                .ok_or_else(|| Error::Setting(format!("`--top-k {top_k}` is not POINT:K or POINT:K:TYPE")))?;
            options = options.top_k(point, dtype, k);
        }
        for dictionary in &self.dictionary {
            let (point, path) = dictionary
                .split_once('=')
                .ok_or_else(|| Error::Setting(format!("`--dictionary {dictionary}` is not POINT=PATH")))?;
            let (point, dtype) = typed(point)?;
            options = options.dictionary(point, dtype, path);
        }
        if self.no_processing {
            options = options.no_processing();
        }
        if let Some(context) = self.context {
            options = options.context(context);
        }
        let tokens = self.tokenised;
        if self.bos.is_some() || self.eos {
            let by_default = !tokens && model.default_prepend_bos();
            let (bos_before_documents, bos_before_rows) = match self.bos {
                None => (by_default, by_default),
                Some(BosPlace::Nowhere) => (false, false),
                Some(BosPlace::Documents) => (true, false),
                Some(BosPlace::Rows) => (false, true),
                Some(BosPlace::Both) => (true, true),
            };
            let boundaries = Boundaries { bos_before_documents, bos_before_rows, eos_after_documents: self.eos };
            options = options.boundaries(boundaries);
        }
        let rows = match (self.rows, self.long) {
            (RowKind::Packed, Long::Refuse) => Rows::Packed,
            (RowKind::Packed, _) => {
                return Err(Error::Setting("`--long` is about rows of documents: say `--rows documents`, as packed rows take documents of any length".into()));
            }
            (RowKind::Documents, Long::Refuse) => Rows::Documents { long: LongDocuments::Refuse },
            (RowKind::Documents, Long::Split) => Rows::Documents { long: LongDocuments::Split },
            (RowKind::Documents, Long::Truncate) => Rows::Documents { long: LongDocuments::Truncate },
        };
        let format = container(self.corpus_format, &self.corpus, self.column, tokens)?;
        let positions = PositionSelection { of: positions(&self.positions)?, without_bos: self.without_bos };
        options
            .rows(rows)
            .positions(positions)
            .formats(self.format)
            .allow_unknown(self.allow_unknown)
            .seed(self.seed)
            .shuffle(!self.no_shuffle)
            .batch_tokens(self.batch_tokens)
            .shard_tokens(self.shard_tokens)
            .plan(model, format, &self.corpus)
    }
}

/// `POINT:TYPE`, or a point alone, in fp32.
fn typed(text: &str) -> Result<(&str, DType)> {
    match text.rsplit_once(':') {
        Some((point, dtype)) if dtype.starts_with(['f', 'b']) => Ok((point, dtype.parse()?)),
        _ => Ok((text, DType::Fp32)),
    }
}

/// What the files are.
fn container(given: Option<Container>, files: &[String], column: String, tokens: bool) -> Result<CorpusFormat> {
    let by_ending = |file: &String| match file.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "json" | "ndjson") => Some(Container::Jsonl),
        Some("parquet") => Some(Container::Parquet),
        Some("txt") => Some(Container::Text),
        _ => None,
    };
    let container = given.or_else(|| files.first().and_then(by_ending)).ok_or_else(|| {
        Error::Setting(match files {
            [] => "name the files of the corpus, with `--corpus`".into(),
            _ => "what the corpus' files are does not follow from their ending: say `--corpus-format`".into(),
        })
    })?;
    match container {
        Container::Text | Container::Lines if tokens => {
            Err(Error::Setting("a text is not tokenised: `--tokenised` goes with JSON lines and Parquet".into()))
        }
        Container::Text => Ok(CorpusFormat::Text),
        Container::Lines => Ok(CorpusFormat::Lines),
        Container::Jsonl => Ok(CorpusFormat::JsonLines { column, tokens }),
        Container::Parquet => Ok(CorpusFormat::Parquet { column, tokens }),
    }
}

/// Positions as Python writes a slice, or several numbers.
fn positions(text: &str) -> Result<Positions> {
    let wrong = || Error::Setting(format!("`--positions {text}` is neither a slice (1:) nor numbers (0,5,-1)"));
    if text == ":" {
        return Ok(Positions::All);
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
    if !text.contains(':') {
        return Ok(Positions::These(text.split(',').map(number).collect::<Result<_>>()?));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let part = |n: usize| parts.get(n).copied().filter(|part| !part.is_empty()).map(number).transpose();
    match (parts.len(), part(0)?, part(1)?, part(2)?) {
        (2 | 3, start, end, step) if step.is_none_or(|step| step > 0) => {
            Ok(Positions::Slice { start: start.unwrap_or(0), end, step: step.unwrap_or(1) as usize })
        }
        _ => Err(wrong()),
    }
}
