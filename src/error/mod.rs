//! What can go wrong, one plain sentence each: what was expected, what came, what to do.

mod checkpoint;
mod constructors;
mod hook;
mod hub;
mod key_value_store;
mod message;
mod tokenizer;
mod unknown_word;

use std::path::PathBuf;

use tch::Kind;

pub use self::checkpoint::CheckpointError;
pub use self::hook::HookFailure;
pub use self::hub::HubError;
pub use self::key_value_store::KeyValueStoreError;
use self::message::first_line;
pub(crate) use self::message::shortened;
pub use self::tokenizer::TokenizerError;
pub use self::unknown_word::UnknownWord;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a user's input, file, hook or device can make fail.
///
/// `{:?}` prints the same sentence as `{}`, so that `fn main() -> tch_lens::Result<()>` and `unwrap` show it.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let error = HookedTransformer::toy()?.to_single_token("Mary and").unwrap_err();
/// assert_eq!(format!("{error:?}"), "`Mary and` is 2 tokens (`Mary`, ` and`), but exactly one is needed");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- names of hook points -----------------------------------------------------------------
    /// A string that is no hook point's name.
    #[error("there is no hook point `{}`; the nearest is `{nearest}`", shortened(.name))]
    UnknownHook {
        /// What was asked for.
        name: String,
        /// The name with the smallest edit distance among those of this model.
        nearest: String,
    },
    /// A hook point that exists, but not in this model.
    #[error("this model has no `{name}`: {why}")]
    HookNotInModel {
        /// The hook point.
        name: String,
        /// What about the model's configuration rules it out.
        why: String,
    },
    /// A layer that the model does not have.
    #[error("layer {layer} is out of range: the model has {n_layers} layers, so {} to {} (negative ones count from the end)", -(*n_layers as i64), *n_layers as i64 - 1)]
    LayerOutOfRange {
        /// The layer asked for.
        layer: i64,
        /// How many layers there are.
        n_layers: usize,
    },
    /// A filter, or a predicate, that selects no hook point.
    #[error("{what} matches no hook point of this model{hint}")]
    NothingSelected {
        /// The filter, in words.
        what: String,
        /// What might have been meant; empty, or beginning with a separator.
        hint: String,
    },

    /// A hook point outside the part of the model that a run passes through.
    #[error("`{name}` is never reached: {why}")]
    NeverReached {
        /// The hook point.
        name: String,
        /// Where the run starts, or stops.
        why: String,
    },

    // --- the cache ----------------------------------------------------------------------------
    /// An activation that this cache does not hold.
    #[error("the cache has no `{name}`: {how}")]
    NoEntry {
        /// The hook point.
        name: String,
        /// How to get it.
        how: String,
    },

    /// A file that holds no activation cache, or not what it says.
    #[error("{} does not hold an activation cache: {why}", .path.display())]
    SavedCache {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },

    /// The file of a cache that another model made.
    #[error("{} holds activations of another model: {differs}", .path.display())]
    CacheOfOtherModel {
        /// The file.
        path: PathBuf,
        /// What differs first.
        differs: String,
    },

    /// Weights that are needed, where a cache was opened without its model.
    #[error("this needs the model's weights, and the cache was opened without its model: open it with `HookedTransformer::open_cache`")]
    NoWeights,

    /// A result that a run did not compute.
    #[error("the run did not compute {output}: {hint}")]
    NotComputed {
        /// The result.
        output: &'static str,
        /// The setting that computes it.
        hint: &'static str,
    },

    /// A memory budget that not even one activation fits into.
    #[error("a budget of {budget} bytes is smaller than one entry: `{name}` takes {bytes}")]
    Budget {
        /// The budget, in bytes.
        budget: u64,
        /// The hook point with the largest activation.
        name: String,
        /// What that takes.
        bytes: u64,
    },

    // --- settings and generation -----------------------------------------------------------------
    /// A row in which no token can be chosen.
    #[error("row {row} has no token to choose from: every one is excluded, or its logits are not numbers")]
    NoCandidate {
        /// The row of the batch.
        row: usize,
    },

    /// A key-value store that cannot be made or continued.
    #[error(transparent)]
    KeyValueStore(#[from] KeyValueStoreError),

    // --- text and tokens ----------------------------------------------------------------------
    /// A text that does not become the tokens that are asked for, or tokens no text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt without a single token.
    #[error("the prompt has no tokens: give at least one token, or prepend the BOS token")]
    EmptyPrompt,
    /// A prompt longer than the model's context.
    #[error("the prompt has {tokens} tokens, and the model's context holds {n_ctx}: shorten it")]
    PromptTooLong {
        /// The prompt's length, with BOS.
        tokens: usize,
        /// `Config::n_ctx`.
        n_ctx: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is out of range: the vocabulary has {d_vocab} entries, 0 to {}", *d_vocab as i64 - 1)]
    TokenOutOfRange {
        /// The offending id.
        id: i64,
        /// `Config::d_vocab`, or `d_vocab_out` where an output token was meant.
        d_vocab: usize,
    },

    // --- shapes and values --------------------------------------------------------------------
    /// A tensor of another shape than needed.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: String,
        /// The shape that came.
        found: Vec<i64>,
        /// The shape that was needed, in words or numbers.
        expected: String,
    },
    /// A dictionary (`sae`) that cannot be what it says, or that does not fit the model.
    #[error("the dictionary at `{name}` cannot be used: {what}")]
    Dictionary {
        /// The activation that it reconstructs, or the file that it is in.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A hook that failed, or whose result cannot stand where it should.
    #[error("the hook at `{name}` {source}")]
    Hook {
        /// The hook point.
        name: String,
        /// How it failed.
        source: HookFailure,
    },
    /// A sink that could not take what a run keeps.
    #[error("the sink failed{place}: {}", first_line(.source))]
    Sink {
        /// Where, in words; empty at the beginning and the end of the run.
        place: String,
        /// What the sink returned.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A patch that cannot act at its point.
    #[error("the patch at `{name}` cannot be made: {what}")]
    Patch {
        /// The hook point.
        name: String,
        /// Why not.
        what: String,
    },
    /// A metric that cannot be computed of a run.
    #[error("the metric cannot be computed: {what}")]
    Metric {
        /// Why not, and what to do.
        what: String,
    },
    /// The function of a metric returned an error of its own.
    #[error("the metric failed: {}", first_line(.source))]
    MetricFailed {
        /// What the function returned.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A slice outside the axis that it slices.
    #[error("{slice} is out of range for the {axis} axis, which has {len} entries")]
    SliceOutOfRange {
        /// The slice.
        slice: String,
        /// Which axis.
        axis: &'static str,
        /// Its length.
        len: i64,
    },
    /// A position that was chosen and is padding in one of the chosen rows.
    #[error("position {position} of batch row {row} is padding: choose `Positions::LastToken` for each row's last token, or add `.with_padding()` to read it all the same")]
    PaddingChosen {
        /// The row of the batch.
        row: i64,
        /// The token column.
        position: i64,
    },
    /// A position that an activation does not hold.
    #[error("{what} has no position {position}, only {held}{hint}")]
    NoPosition {
        /// The activation, by its hook point, or the run.
        what: String,
        /// The token column that was asked for.
        position: i64,
        /// The token columns that there are.
        held: String,
        /// What to do; empty, or beginning with a separator.
        hint: String,
    },
    /// A row of the batch that a result is not of.
    #[error("the result has no batch row {row}, only {held}")]
    NoBatchRow {
        /// The row of the batch that was asked for.
        row: i64,
        /// The rows that there are.
        held: String,
    },
    /// A row that a stack, attribution or lens does not have.
    #[error("the stack has no row `{label}`; its {count} rows are {rows}")]
    NoRow {
        /// The label that was asked for.
        label: String,
        /// How many rows there are.
        count: usize,
        /// The first of them.
        rows: String,
    },
    /// Something that is of one position and batch row, of a result that has several.
    #[error("{what} is of one position and batch row, but there are {positions} and {rows}: choose with pos(…) and batch(…)")]
    SeveralPositions {
        /// What was asked for.
        what: String,
        /// How many positions there are.
        positions: i64,
        /// How many rows of the batch there are.
        rows: i64,
    },
    /// A stack and a cache, or two stacks, of different runs.
    #[error("{what} are of different runs: {hint}")]
    OtherRun {
        /// What was put together.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A node or an edge of a circuit that the model does not have, or a name of none.
    #[error("there is no `{}`: {why}", shortened(.name))]
    NoCircuitPart {
        /// What was asked for.
        name: String,
        /// What there is.
        why: String,
    },
    /// Two stacks of different batch rows or positions of one run.
    #[error("stacks can be joined where both are of the same batch rows and positions, with the same axes: one is of positions {ours}, the other of {theirs}")]
    OtherWindow {
        /// The positions of one.
        ours: String,
        /// The positions of the other.
        theirs: String,
    },
    /// A norm before attention that the heads do not share, since a hook gave them different streams.
    #[error("the heads of this layer may read different streams, as a hook acts on what `{name}` shows: rows of the stream pass through no one norm there")]
    HeadsReadApart {
        /// The hook point.
        name: String,
    },
    /// A figure of the run that a hook has changed on the way, and that the cache does not have.
    #[error("a hook changed `{changed}`, so the logit does not follow from the stream: keep `{needed}` in the cache as well, at these positions")]
    ChangedOnTheWay {
        /// The hook point that was changed.
        changed: String,
        /// The hook point that the cache would have to hold.
        needed: String,
    },
    /// A setting that does not apply, or that contradicts another one.
    #[error("{why}")]
    Setting {
        /// The method that sets it.
        name: &'static str,
        /// Why it does not apply, and what to do.
        why: String,
    },
    /// A part that this model does not have.
    #[error("the model has no {part}: {why}")]
    ModelHasNo {
        /// The part.
        part: String,
        /// What about the model rules it out.
        why: String,
    },
    /// An axis that a cache or a result no longer has, or cannot do without.
    #[error("{why}")]
    NoAxis {
        /// Which axis.
        axis: &'static str,
        /// Why not, and what to do.
        why: String,
    },
    /// An argument that a method cannot take.
    #[error("{why}")]
    WrongInput {
        /// What came, and what was expected.
        why: String,
    },
    /// Something that a method does not do for this model, or on this machine.
    #[error("{why}")]
    Unsupported {
        /// What, why not, and what to do.
        why: String,
    },
    /// A state that the crate rules out. It is a mistake of the crate's own.
    #[error("{0}: this is a mistake of tch-lens; please report it")]
    Internal(&'static str),

    // --- configurations and checkpoints -------------------------------------------------------
    /// Weights that the configuration does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file whose contents are not what its name says.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it: a [`FormatError`](crate::FormatError) of a checkpoint, an error of serde_json, or a sentence.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A model that the hub does not give.
    #[error("`{name}` on the hub: {source}")]
    Hub {
        /// The model's name there.
        name: String,
        /// Why not, and what to do.
        source: HubError,
    },
    /// A point in a model's training that the hub does not have.
    #[error("`{name}` has no {asked}: {has}")]
    NoCheckpoint {
        /// The model's name on the hub.
        name: String,
        /// What was asked for.
        asked: String,
        /// What there is.
        has: String,
    },
    /// An architecture that no family reads.
    #[error(
        "architecture `{found}` is not supported{why}; `HookedTransformer::supported()` lists the {known} that are"
    )]
    UnknownArchitecture {
        /// The `architectures` entry, or `model_type`, of the `config.json`.
        found: String,
        /// Why not, after a colon, where that is known; else empty.
        why: String,
        /// How many can be loaded.
        known: usize,
    },
    /// A configuration that the model cannot be built from.
    #[error("config field `{field}` is {value}: {why}")]
    ConfigField {
        /// The field's name, as in the file.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        why: String,
    },

    /// A figure that cannot be drawn.
    #[error("the figure cannot be drawn: {why}")]
    Drawing {
        /// Why not, and what to do.
        why: String,
    },

    /// A device that this machine, or this libtorch, does not have.
    #[error("there is no device {device:?}: {why}")]
    NoDevice {
        /// The device asked for.
        device: tch::Device,
        /// Which ones there are.
        why: String,
    },

    /// A kind that weights cannot have.
    #[error("weights cannot be of kind {kind:?}: use Float, BFloat16, Half or Double")]
    UnsupportedKind {
        /// The kind asked for.
        kind: Kind,
    },

    /// Memory outside libtorch's tensors that ran out. Where a tensor's ran out, the error is [`Error::Torch`].
    #[error("memory ran out: the system refused {bytes} bytes")]
    OutOfMemory {
        /// How many were asked for.
        bytes: u64,
    },

    /// libtorch refused an operation.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
