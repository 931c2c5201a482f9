//! Short ways to make errors.

use std::path::PathBuf;

use super::{Error, HookFailure, TokenizerError};

impl Error {
    /// An [`Error::Setting`].
    pub(crate) fn setting(name: &'static str, why: impl Into<String>) -> Self {
        Error::Setting { name, why: why.into() }
    }

    /// An [`Error::ModelHasNo`].
    pub(crate) fn model_has_no(part: impl Into<String>, why: impl Into<String>) -> Self {
        Error::ModelHasNo { part: part.into(), why: why.into() }
    }

    /// An [`Error::NoAxis`].
    pub(crate) fn no_axis(axis: &'static str, why: impl Into<String>) -> Self {
        Error::NoAxis { axis, why: why.into() }
    }

    /// An [`Error::Metric`].
    pub(crate) fn metric(what: impl Into<String>) -> Self {
        Error::Metric { what: what.into() }
    }

    /// An [`Error::WrongInput`].
    pub(crate) fn wrong_input(why: impl Into<String>) -> Self {
        Error::WrongInput { why: why.into() }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(why: impl Into<String>) -> Self {
        Error::Unsupported { why: why.into() }
    }

    /// An [`Error::Io`] that names the file.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Malformed`] that names the file.
    pub(crate) fn malformed(
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::Malformed { path: path.into(), source: source.into() }
    }

    /// An [`Error::Tokenizer`] of the tokenizer itself.
    pub(crate) fn tokenizer(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        TokenizerError::Failed(source.into()).into()
    }

    /// An [`Error::Hook`].
    pub(crate) fn hook(name: impl ToString, source: HookFailure) -> Self {
        Error::Hook { name: name.to_string(), source }
    }

    /// An [`Error::Setting`] of a value that cannot be used.
    pub(crate) fn option_value(name: &'static str, value: impl ToString, rule: impl Into<String>) -> Self {
        Error::Setting { name, why: format!("`{name}` is {}: {}", value.to_string(), rule.into()) }
    }

    /// An [`Error::ConfigField`].
    pub(crate) fn field(field: &str, value: impl ToString, why: &str) -> Self {
        Error::ConfigField { field: field.into(), value: value.to_string(), why: why.into() }
    }
}
