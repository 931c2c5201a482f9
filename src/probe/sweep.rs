//! [`ProbeSweep`]: the same probe at several points.

use std::fmt;

use super::data::{ProbeData, ProbeExample};
use super::fit::ProbeOptions;
use super::result::ProbeResult;
use crate::cache::ActivationCache;
use crate::hook::{HookFilter, HookPoint};
use crate::{Error, Result};

/// How the same probe does at several points, such as the stream of each layer. Prints as a table.
#[derive(Clone, Debug)]
pub struct ProbeSweep {
    /// The points with their results, in firing order.
    pub rows: Vec<(HookPoint, ProbeResult)>,
}

impl ProbeSweep {
    /// Fits a probe at each point that a filter selects and the cache holds, with the same examples, labels and split.
    ///
    /// ```
    /// use tch_lens::probe::{ProbeOptions, ProbeSweep};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let texts = ["When Mary and John went", "When Anna and Peter went", "When John and Mary went", "When Peter and Anna went"];
    /// let (_, cache) = model.run_with_cache(texts)?;
    /// // Is the token a name?
    /// let sweep = ProbeSweep::fit(&cache, "resid_post", |example| Some(usize::from([2, 4].contains(&example.position))), &ProbeOptions::new())?;
    /// println!("{sweep}");
    /// assert_eq!(sweep.rows.len(), 4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ProbeData::of_cache`] and [`ProbeData::fit`], and of the filter; [`Error::NoEntry`] where the cache holds none of the points.
    pub fn fit<'f>(
        cache: &ActivationCache,
        points: impl Into<HookFilter<'f>>,
        label: impl Fn(ProbeExample) -> Option<usize>,
        options: &ProbeOptions,
    ) -> Result<Self> {
        let points = points.into().resolve(cache.model().config())?;
        let held: Vec<HookPoint> = points.iter().copied().filter(|point| cache.contains(*point)).collect();
        if let (true, Some(first)) = (held.is_empty(), points.first()) {
            return Err(Error::NoEntry {
                name: first.to_string(),
                how: "run again with it in the cache's filter".into(),
            });
        }
        let fitted = |point: HookPoint| Ok((point, ProbeData::of_cache(cache, point, &label)?.fit(options)?));
        Ok(ProbeSweep { rows: held.into_iter().map(fitted).collect::<Result<_>>()? })
    }
}

impl fmt::Display for ProbeSweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(point, _)| point.to_string().len()).max().unwrap_or(0);
        write!(f, "{:<width$}    test  control  selectivity", "")?;
        for (point, result) in &self.rows {
            let [test, control, selectivity] =
                [result.test_accuracy, result.control_accuracy, result.selectivity()].map(|share| 100.0 * share);
            write!(f, "\n{:<width$}  {test:>4.1} %   {control:>4.1} %  {selectivity:>+9.1} %", point.to_string())?;
        }
        Ok(())
    }
}
