//! [`Function`]: a metric that the caller computes.

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::{HookFilter, HookPoint};
use crate::run::HookError;
use crate::{Config, Error, Result};

/// A function of the caller's, and the activations that it needs.
pub(super) struct Function<'a> {
    needs: Option<HookFilter<'a>>,
    f: Box<FunctionOf<'a>>,
}

/// Computes a metric from logits and activations.
type FunctionOf<'a> = dyn Fn(&Tensor, &ActivationCache) -> Result<Tensor, HookError> + 'a;

impl<'a> Function<'a> {
    pub(super) fn new(
        needs: Option<HookFilter<'a>>,
        f: impl Fn(&Tensor, &ActivationCache) -> Result<Tensor, HookError> + 'a,
    ) -> Self {
        Function { needs, f: Box::new(f) }
    }

    /// The activations that it needs.
    pub(super) fn needs(&self, config: &Config) -> Result<Vec<HookPoint>> {
        self.needs.as_ref().map_or(Ok(Vec::new()), |needs| needs.resolve(config))
    }

    /// What the function returns for `batch` rows: `[batch]`, or `[1]` where it returns one value for all rows.
    pub(super) fn call(&self, logits: &Tensor, cache: &ActivationCache, batch: i64) -> Result<Tensor> {
        let value = catch_unwind(AssertUnwindSafe(|| (self.f)(logits, cache))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Error::metric(format!("its function panicked: {}", text.unwrap_or("it did not say why")))
        })?;
        let value = value.map_err(|source| Error::MetricFailed { source })?;
        if !value.defined() {
            return Err(Error::metric("its function returned an undefined tensor"));
        }
        let (size, kind) = (value.size(), value.f_kind()?);
        if !matches!(kind, tch::Kind::Half | tch::Kind::BFloat16 | tch::Kind::Float | tch::Kind::Double) {
            return Err(Error::metric(format!(
                "its function returned a tensor of kind {kind:?}, not floating-point numbers"
            )));
        }
        match size[..] {
            [] => Ok(value.f_view([1])?),
            [len] if len == batch => Ok(value),
            _ => Err(Error::metric(format!(
                "its function returned shape {size:?}, but must return a value for each row, [{batch}], or one without dimensions"
            ))),
        }
    }
}

impl fmt::Debug for Function<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for tch::Tensor {}
    impl<E> Sealed for Result<tch::Tensor, E> {}
}

/// What the function of a [`Metric`](super::Metric) returns: a tensor, or a `Result` of one.
pub trait MetricResult: sealed::Sealed {
    #[doc(hidden)]
    fn into_tensor(self) -> Result<Tensor, HookError>;
}

impl MetricResult for Tensor {
    fn into_tensor(self) -> Result<Tensor, HookError> {
        Ok(self)
    }
}

impl<E: Into<HookError>> MetricResult for Result<Tensor, E> {
    fn into_tensor(self) -> Result<Tensor, HookError> {
        self.map_err(Into::into)
    }
}
