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
    /// [`Error::NoCheckpoint`]: the model has no checkpoints, or not this one, with those nearest to it.
    pub(crate) fn revision(self, name: &str) -> Result<String> {
        let missing = |asked: String, has: String| Error::NoCheckpoint { name: name.into(), asked, has };
        let Some((prefix, steps)) = schedule(name) else {
            let has = "Pythia's and Stanford's GPT-2s (`pythia-70m`, `stanford-gpt2-small-a`) have";
            return Err(missing("checkpoints by step".into(), has.into()));
        };
        let step = match self {
            Checkpoint::Index(index) => {
                let n = steps.len() as i64;
                let place = if index < 0 { index.saturating_add(n) } else { index };
                let step = usize::try_from(place).ok().and_then(|place| steps.get(place));
                *step.ok_or_else(|| {
                    missing(format!("checkpoint of index {index}"), format!("it has {n}, 0 to {} or -{n} to -1", n - 1))
                })?
            }
            Checkpoint::Step(step) => {
                if let Err(after) = steps.binary_search(&step) {
                    let near = [after.checked_sub(1).map(|i| steps[i]), steps.get(after).copied()];
                    let near: Vec<String> = near.into_iter().flatten().map(|step| step.to_string()).collect();
                    let nearest = format!("the nearest are of step {}", near.join(" and "));
                    return Err(missing(format!("checkpoint of step {step}"), nearest));
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
        assert!(unknown.ends_with("no checkpoint of step 1500: the nearest are of step 1000 and 2000"), "{unknown}");
        let past = error("EleutherAI/pythia-70m", Checkpoint::Step(1_000_000));
        assert!(past.ends_with("the nearest are of step 143000"), "{past}");
        let index = error("EleutherAI/pythia-70m", Checkpoint::Index(154));
        assert!(index.ends_with("no checkpoint of index 154: it has 154, 0 to 153 or -154 to -1"), "{index}");
        assert!(error("EleutherAI/pythia-70m", Checkpoint::Index(-155)).contains("index -155"));
    }
}
