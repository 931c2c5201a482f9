//! [`HubError`]: why the Hugging Face hub does not give a model.

use std::path::PathBuf;

/// Why the Hugging Face hub does not give a model. [`Error::Hub`](crate::Error::Hub) adds the model's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// This build cannot load models from the hub.
    #[error("there is no folder `{given}`, and models of the hub need the feature `hub`: `cargo add tch-lens --features hub`")]
    FeatureDisabled {
        /// The name as it was given.
        given: String,
    },
    /// There is no folder for the cache.
    #[error("there is no home folder to keep a cache in: set HF_HOME")]
    NoCacheFolder,
    /// A revision that cannot be one.
    #[error("`{revision}` cannot be a revision: give a branch, a tag or a commit")]
    InvalidRevision {
        /// The revision asked for.
        revision: String,
    },
    /// A revision that the model does not have.
    #[error("it has no revision `{revision}`")]
    NoSuchRevision {
        /// The revision asked for.
        revision: String,
    },
    /// A model that the hub does not have, or does not show.
    #[error("there is no such model, or it is private and {}", if *.with_token { "the token does not open it" } else { "needs a token: set HF_TOKEN, or log in with `hf auth login`" })]
    NoSuchModel {
        /// Whether a token was given.
        with_token: bool,
    },
    /// A model whose licence has to be accepted first.
    #[error(
        "access to it is restricted; ask for it at {url}, and give the token of the account that has it (HF_TOKEN)"
    )]
    Restricted {
        /// The model's page.
        url: String,
    },
    /// A model that is not in the cache, while downloads are ruled out.
    #[error("it is not in the cache at {}, and this is offline", cache.display())]
    Offline {
        /// The cache.
        cache: PathBuf,
    },
    /// A repository of several GGUF files.
    #[error("it has {count} models as GGUF files: choose one with `gguf_file`: {files}")]
    SeveralGguf {
        /// How many.
        count: usize,
        /// Their names.
        files: String,
    },
    /// The hub does not answer.
    #[error("the hub at {endpoint} cannot be reached: {why}")]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// What the connection said.
        why: String,
    },
    /// The hub's answer is not what its protocol says.
    #[error("the hub's answer is broken: {why}")]
    BrokenAnswer {
        /// What is wrong with it.
        why: String,
    },
    /// A file that the hub does not have.
    #[error("it has no file `{file}`")]
    NoFile {
        /// The file.
        file: String,
    },
    /// A model without weights.
    #[error("it has no weights: neither {} nor {}", .expected[0], .expected[1])]
    NoWeights {
        /// The files that would have them.
        expected: [&'static str; 2],
    },
    /// A file that did not arrive, or not whole.
    #[error("`{file}` did not arrive: {why}")]
    Download {
        /// The file.
        file: String,
        /// What went wrong, and what happens next.
        why: String,
    },
    /// A file that arrived with other contents than the hub announced. It is not kept.
    #[error("`{file}` arrived with {found} instead of {announced}: refused")]
    WrongContents {
        /// The file.
        file: String,
        /// Its length or SHA-256.
        found: String,
        /// What the hub announced.
        announced: String,
    },
}
