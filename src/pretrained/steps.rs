//! Models of which the hub has what they were while they were trained, one revision a step.

use crate::{Error, Result};

/// Which of a model's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpoint {
    /// After so many steps.
    Step(usize),
    /// The n-th; negative ones from the end.
    Index(i64),
}

impl Checkpoint {
    /// The revision of the model of this name (the hub's) that is this checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`]: the model has no checkpoints, or not this one, with those nearest to it.
    pub(crate) fn revision(self, name: &str) -> Result<String> {
        let Some((prefix, steps)) = schedule(name) else {
            let which = "Pythia's and Stanford's GPT-2s (`pythia-70m`, `stanford-gpt2-small-a`) have";
            return Err(Error::invalid(format!("`{name}` has no checkpoints by step; {which}")));
        };
        let step = match self {
            Checkpoint::Index(index) => {
                let n = steps.len() as i64;
                let at = if index < 0 { index + n } else { index };
                let step = usize::try_from(at).ok().and_then(|at| steps.get(at));
                *step.ok_or_else(|| {
                    Error::invalid(format!("`{name}` has {n} checkpoints, so {index} is none: 0 to {}", n - 1))
                })?
            }
            Checkpoint::Step(step) => {
                if let Err(after) = steps.binary_search(&step) {
                    let near = [after.checked_sub(1).map(|i| steps[i]), steps.get(after).copied()];
                    let near: Vec<String> = near.into_iter().flatten().map(|step| step.to_string()).collect();
                    let near = near.join(" and ");
                    return Err(Error::invalid(format!(
                        "`{name}` has no checkpoint of step {step}; the nearest: {near}"
                    )));
                }
                step
            }
        };
        Ok(format!("{prefix}{step}"))
    }
}

/// What revisions are called before the step's number, and the steps in order.
fn schedule(name: &str) -> Option<(&'static str, Vec<usize>)> {
    if name.starts_with("stanford-crfm/") {
        let steps = (0..100).step_by(10).chain((100..2000).step_by(50));
        let steps = steps.chain((2000..20_000).step_by(100)).chain((20_000..=400_000).step_by(1000));
        Some(("checkpoint-", steps.collect()))
    } else if name.starts_with("EleutherAI/pythia-") {
        // The first release has no early ones.
        let early = if name.ends_with("-v0") { vec![] } else { vec![0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512] };
        Some(("step", early.into_iter().chain((1000..=143_000).step_by(1000)).collect()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_indices_are_revisions() {
        let pythia = "EleutherAI/pythia-70m";
        let stanford = "stanford-crfm/alias-gpt2-small-x21";
        for (name, checkpoint, revision) in [
            (pythia, Checkpoint::Step(1000), "step1000"),
            (pythia, Checkpoint::Index(0), "step0"),
            (pythia, Checkpoint::Index(11), "step1000"),
            (pythia, Checkpoint::Index(-1), "step143000"),
            ("EleutherAI/pythia-70m-v0", Checkpoint::Index(0), "step1000"),
            (stanford, Checkpoint::Step(1000), "checkpoint-1000"),
            (stanford, Checkpoint::Index(10), "checkpoint-100"),
            (stanford, Checkpoint::Index(-1), "checkpoint-400000"),
        ] {
            assert_eq!(checkpoint.revision(name).unwrap(), revision);
        }
        assert_eq!(schedule(stanford).unwrap().1.len(), 609);
        assert_eq!(schedule(pythia).unwrap().1.len(), 154);
    }

    #[test]
    fn what_is_not_there_says_what_is() {
        let error = |name: &str, checkpoint: Checkpoint| checkpoint.revision(name).unwrap_err().to_string();
        assert!(error("gpt2", Checkpoint::Step(1)).contains("no checkpoints by step"));
        let unknown = error("EleutherAI/pythia-70m", Checkpoint::Step(1500));
        assert!(unknown.ends_with("no checkpoint of step 1500; the nearest: 1000 and 2000"), "{unknown}");
        let past = error("EleutherAI/pythia-70m", Checkpoint::Step(1_000_000));
        assert!(past.ends_with("the nearest: 143000"), "{past}");
        let index = error("EleutherAI/pythia-70m", Checkpoint::Index(154));
        assert!(index.ends_with("154 checkpoints, so 154 is none: 0 to 153"), "{index}");
        assert!(error("EleutherAI/pythia-70m", Checkpoint::Index(-155)).contains("-155 is none"));
    }
}
