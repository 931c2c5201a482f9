//! Where kept activations go: streams, files, budgets; and what a sink may not do.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::common::{families, raw, Fixture};
use tch::{Kind, Tensor};
use tch_lens::{
    hook, Error, FileSink, HookError, HookFailure, HookFilter, HookPoint, PlannedEntry, Positions, ReturnType,
    RunOptions, Sink, SinkEntry,
};

const PROMPT: [i64; 5] = [5, 14, 3, 10, 9];

/// A stream gets what the cache would hold, in the order in which it fires, with its positions.
#[test]
fn a_stream_gets_what_the_cache_would_hold() {
    for family in families() {
        let (model, tokens) = (raw(&family), Fixture::open(&family).want("tokens"));
        for run in [|run: RunOptions<'static>| run, |run: RunOptions<'static>| run.pos([3, 1]).logits_at([4, 3])] {
            let mut got: Vec<(HookPoint, Tensor, Vec<i64>)> = Vec::new();
            let kept = model.run(&tokens, run(RunOptions::new().cache(model.hook_names()))).unwrap().cache;
            let stream = |entry: SinkEntry| got.push((entry.point, entry.tensor.copy(), entry.positions.of_row(0)));
            // The closure borrows; a run's other settings are made again.
            let plain = run(RunOptions::new().cache(model.hook_names()));
            let outcome = model.run(&tokens, narrowed(plain).sink(stream)).unwrap();
            assert!(outcome.cache.is_empty() && outcome.logits.is_some(), "{family}");
            assert!(got.iter().map(|(point, ..)| *point).eq(kept.keys()), "{family}");
            for (point, tensor, positions) in got {
                assert_eq!(tensor, kept[point], "{family}, {point}");
                assert_eq!(positions, kept.positions_of(point).unwrap().of_row(0), "{family}, {point}");
            }
        }
    }
}

/// The same run, for a shorter life.
fn narrowed<'a>(run: RunOptions<'a>) -> RunOptions<'a> {
    run
}

/// A file has what the cache would hold, bit for bit, and appears only when the run has ended well.
#[test]
fn a_file_has_what_the_cache_would_hold() {
    let folder = tempfile::tempdir().unwrap();
    for family in ["gpt2", "llama_gqa_tied", "olmo2", "toy_shortformer", "mixtral"] {
        let (model, tokens) = (raw(family), Fixture::open(family).want("tokens"));
        for (i, run) in [|run: RunOptions<'static>| run, |run: RunOptions<'static>| run.pos([3, 1]).logits_at([4, 3])]
            .into_iter()
            .enumerate()
        {
            let path = folder.path().join(format!("{family}_{i}.safetensors"));
            let kept = model.run(&tokens, run(RunOptions::new().cache(model.hook_names()))).unwrap().cache;
            let outcome = model
                .run(&tokens, run(RunOptions::new().cache(model.hook_names()).sink(FileSink::new(&path))))
                .unwrap();
            assert!(outcome.cache.is_empty());
            let read: BTreeMap<String, Tensor> = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
            assert_eq!(read.len(), kept.len() + 1); // and the tokens
            for (point, tensor) in &kept {
                let ours = &read[&point.to_string()];
                assert_eq!(ours.kind(), tensor.kind(), "{family}, {point}");
                assert!(ours.equal(tensor), "{family}, {point}");
            }
        }
    }
}

#[test]
fn a_run_that_fails_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("activations.safetensors");
    let model = raw("gpt2");
    let hooks = || tch_lens::Hooks::new().observe(hook::z(1), |_, _| Err::<(), _>("no"));
    let run = RunOptions::new().cache("resid_post").hooks(hooks()).sink(FileSink::new(&path));
    assert!(model.run(PROMPT, run).is_err());
    let missing = folder.path().join("missing").join("a.safetensors");
    let run = RunOptions::new().cache("resid_post").sink(FileSink::new(&missing));
    assert!(matches!(model.run(PROMPT, run), Err(Error::Io { path, .. }) if path == missing));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A sink of one's own learns what will come, and gets just that.
#[test]
fn what_is_announced_comes() {
    #[derive(Default)]
    struct Recorder<'a> {
        planned: Vec<PlannedEntry>,
        came: usize,
        finished: Option<&'a RefCell<usize>>,
    }
    impl Sink for Recorder<'_> {
        fn begin(&mut self, planned: &[PlannedEntry]) -> Result<(), HookError> {
            self.planned = planned.into();
            Ok(())
        }
        fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError> {
            let due = &self.planned[self.came];
            assert_eq!((due.point, due.kind), (entry.point, entry.tensor.kind()));
            match &due.shape {
                Some(shape) => assert_eq!(*shape, entry.tensor.size(), "{}", entry.point),
                None => assert!(entry.point.expert().is_some()),
            }
            self.came += 1;
            Ok((self.came == 1).then_some(entry.tensor)) // the cache gets the first
        }
        fn finish(&mut self) -> Result<(), HookError> {
            assert_eq!(self.came, self.planned.len());
            *self.finished.unwrap().borrow_mut() += 1;
            Ok(())
        }
    }
    for family in families() {
        let (model, tokens) = (raw(&family), Fixture::open(&family).want("tokens"));
        // With heads that read streams of their own, and logits at other positions than those that are kept.
        let hooks = || tch_lens::Hooks::new().replace("v_input", |x, _| x.shallow_clone());
        let runs: [fn() -> RunOptions<'static>; 4] = [
            RunOptions::new,
            || RunOptions::new().pos(Positions::LastToken),
            || RunOptions::new().pos(0..2).logits_at(3..),
            || RunOptions::new().stop_at_layer(1),
        ];
        for (i, run) in runs.into_iter().enumerate() {
            let finished = RefCell::new(0);
            let filter = if i == 3 { HookFilter::All } else { model.hook_names().into() };
            let sink = Recorder { finished: Some(&finished), ..Recorder::default() };
            let cache = model.run(&tokens, narrowed(run()).hooks(hooks()).cache(filter).sink(sink)).unwrap().cache;
            assert_eq!((cache.len(), finished.into_inner()), (1, 1), "{family}");
        }
    }
}

#[test]
fn a_sink_that_fails_panics_or_edits_ends_the_run() {
    let model = raw("gpt2");
    let run = |sink: fn(SinkEntry) -> Result<(), HookError>| {
        model.run(PROMPT, RunOptions::new().cache("z").return_type(ReturnType::None).sink(sink)).unwrap_err()
    };
    let error = run(|_| Err("the disk is full".into()));
    assert!(matches!(error, Error::Sink { .. }));
    assert_eq!(error.to_string(), "the sink failed at `blocks.0.attn.hook_z`: the disk is full");
    let error = run(|_| Err(Error::EmptyPrompt.into()));
    assert!(matches!(error, Error::EmptyPrompt)); // the crate's own stay what they are
    let error = run(|_| panic!("no room"));
    assert!(
        matches!(&error, Error::Hook { name, source: HookFailure::Panicked { message } } if name == "blocks.0.attn.hook_z" && message == "no room")
    );
    let error = run(|entry| {
        let _ = entry.tensor.shallow_clone().zero_();
        Ok(())
    });
    assert!(matches!(error, Error::Hook { source: HookFailure::EditedInPlace, .. }), "{error}");
}

/// Sums over a batch of runs, without a cache of any.
#[test]
fn a_stream_adds_up_over_runs() {
    let model = raw("gpt2");
    let mut sum = Tensor::zeros([24], (Kind::Double, tch::Device::Cpu));
    for prompt in [[5i64, 14, 3], [7, 4, 12]] {
        let add = |entry: SinkEntry| {
            sum += entry.tensor.to_kind(Kind::Double).sum_dim_intlist([0i64, 1].as_slice(), false, None);
        };
        model
            .run(prompt, RunOptions::new().cache(hook::resid_post(-1)).return_type(ReturnType::None).sink(add))
            .unwrap();
    }
    let (_, both) = model.run_with_cache(vec![vec![5i64, 14, 3], vec![7, 4, 12]]).unwrap();
    let expected = both[hook::resid_post(-1)].to_kind(Kind::Double).sum_dim_intlist([0i64, 1].as_slice(), false, None);
    assert!(crate::common::max_diff("sum", &sum, &expected) < 1e-4);
}
