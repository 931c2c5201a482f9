//! A run before its first matrix product: what is done at which hook points ([`Hooks`]), what must be computed because of it
//! ([`Plan`]), what the forward pass does at a point ([`Tap`]), where kept activations go ([`sink`]), and the way back from a scalar to
//! them ([`backward`]).

pub(crate) mod backward;
pub(crate) mod entry;
mod guard;
mod hooks;
pub(crate) mod kept;
mod part;
mod patch;
mod plan;
mod rules;
mod run_values;
mod selected;
pub(crate) mod sink;
mod splicing;
pub(crate) mod step;
mod tap;

pub use hooks::{HookError, HookReplacement, HookResult, Hooks};
pub use patch::{Patch, PatchValue};
pub use plan::Plan;
pub use rules::BackwardRules;
pub use run_values::RunValues;
pub use sink::{FileSink, PlannedEntry, RunDescription, Sink, SinkEntry};

pub(crate) use entry::Entry;
pub(crate) use part::Part;
pub(crate) use plan::{Differentiation, Order};
pub(crate) use run_values::RunForm;
pub(crate) use selected::Selected;
pub(crate) use tap::{Flow, Halt, Recording, Tap};
