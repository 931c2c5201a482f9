//! Linear probes: what can be read from activations by a linear map, and whether that says anything of the model.
//!
//! A [`LinearProbe`] is fitted on a part of the examples and judged on the others. A probe with many weights can learn anything, so each
//! comes with a control (Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks"): the same probe on random labels, one
//! for each token of the vocabulary or for each example ([`ControlLabels`]). Its [`selectivity`](ProbeResult::selectivity) is how much better it does on the true labels.
//!
//! ```
//! use tch_lens::probe::{ControlLabels, ProbeData, ProbeOptions};
//! use tch_lens::{hook, HookedTransformer};
//! let model = HookedTransformer::toy()?;
//! let names = [" Mary", " John", " Anna", " Peter"];
//! let mut prompts = Vec::new();
//! for one in names {
//!     for other in names.into_iter().filter(|other| *other != one) {
//!         prompts.push(format!("When{one} and{other} went to the shop,{other} gave a bag to"));
//!     }
//! }
//! let (_, cache) = model.run_with_cache(prompts)?;
//! // Which of the names is the answer, from the stream at the last token?
//! let data = ProbeData::of_cache(&cache, hook::resid_post(3), |example| (example.position == 14).then_some(example.row / 3))?;
//! let result = data.fit(&ProbeOptions::new().l2(1e-2).control(ControlLabels::ByExample))?;
//! println!("{result}");
//! assert!(result.test_accuracy > result.control_accuracy);
//! # Ok::<(), tch_lens::Error>(())
//! ```

mod data;
mod fit;
mod logistic;
mod result;
mod sweep;

pub use data::{ProbeData, ProbeExample};
pub use fit::{ControlLabels, ProbeMethod, ProbeOptions};
pub use result::{LinearProbe, ProbeResult};
pub use sweep::ProbeSweep;
