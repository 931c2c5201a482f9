//! Whatever a run keeps, changes and slices, every analysis of it is that of the whole run at the same rows and positions, or an error.
//!
//! `TCH_LENS_CASES` sets the number of cases.

use std::cell::OnceCell;

use crate::common::{child, families, fixtures, raw};
use crate::transformers_families::REFUSED;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use tch::{Kind, Tensor};
use tch_lens::{
    AccumulateOptions, ActivationCache, DecomposeOptions, Error, FullOptions, HeadOptions, HookFilter, HookPoint,
    HookedEncoderDecoder, HookedTransformer, Hooks, LensOptions, LoadOptions, NeuronOptions, PaddingSide, Positions,
    Result, RunOptions, Slice, Target, Tokens,
};

/// Relative to the largest entry, or absolute where that is below one.
const TOLERANCE: f64 = 1e-4;
/// The longest row.
const LEN: i64 = 5;

#[derive(Clone, Debug)]
struct Case {
    family: usize,
    lens: Vec<usize>,
    left: bool,
    kept: Positions,
    logits_at: Positions,
    /// Every `n`th point is left out of the cache; none for 0.
    left_out: usize,
    /// The point that a hook changes.
    changed: Option<usize>,
    batch: Option<Slice>,
    analysis: usize,
    target: usize,
    apply_ln: bool,
    window_pos: Positions,
    window_batch: Slice,
}

fn slice(len: i64) -> impl Strategy<Value = Slice> {
    prop_oneof![
        3 => Just(Slice::All),
        2 => (-len..len).prop_map(Slice::Index),
        1 => (0..len, 1..len + 1, 1i64..3).prop_map(|(start, end, step)| Slice::Range { start: Some(start), end: Some(end), step }),
        1 => prop::collection::vec(-len..len, 1..4).prop_map(Slice::List),
    ]
}

fn positions() -> impl Strategy<Value = Positions> {
    let plain = prop_oneof![
        6 => slice(LEN).prop_map(Positions::Slice),
        2 => Just(Positions::LastToken),
        1 => prop::collection::vec(-LEN..LEN, 2).prop_map(Positions::PerRow),
    ];
    (plain, prop::bool::weighted(0.3))
        .prop_map(|(positions, padding)| if padding { positions.with_padding() } else { positions })
}

fn case() -> impl Strategy<Value = Case> {
    let run = (0usize..1000, prop::collection::vec(1usize..=LEN as usize, 2), any::<bool>(), positions(), positions());
    let kept = (prop_oneof![4 => Just(0usize), 1 => 2usize..40], prop::option::weighted(0.6, 0usize..1000));
    let analysis = (prop::option::weighted(0.3, slice(2)), 0usize..9, 0usize..10, any::<bool>(), positions(), slice(2));
    (run, kept, analysis).prop_map(|((family, lens, left, kept, logits_at), (left_out, changed), rest)| {
        let (batch, analysis, target, apply_ln, window_pos, window_batch) = rest;
        Case {
            family,
            lens,
            left,
            kept,
            logits_at,
            left_out,
            changed,
            batch,
            analysis,
            target,
            apply_ln,
            window_pos,
            window_batch,
        }
    })
}

/// What an analysis gave: `[row, batch, pos, …]` with all axes, its labels, and which columns each row of the batch has.
struct Found {
    values: Tensor,
    labels: Vec<String>,
}

fn targets(model: &HookedTransformer) -> Vec<Target> {
    let layers = 0..model.config().n_layers as i64;
    let mlps = layers.clone().filter(|_| !model.config().attn_only()).map(Target::Mlp);
    layers.map(Target::Attn).chain(mlps).chain([Target::Unembed]).collect()
}

/// One analysis, in a window.
fn analyse(
    cache: &ActivationCache,
    case: &Case,
    target: Target,
    pos: Positions,
    batch: Slice,
) -> Result<(Found, Option<f64>)> {
    let ln = case.apply_ln;
    let found = |values: Tensor, labels: Vec<String>| Found { values, labels };
    macro_rules! stack {
        ($method:ident, $options:expr) => {{
            let stack = cache.$method($options.target(target).apply_ln(ln).pos(pos).batch(batch))?;
            Ok((found(stack.tensor(), stack.labels()), None))
        }};
    }
    macro_rules! attrs {
        ($options:expr, $complete:expr) => {{
            let attrs = cache.logit_attrs($options.target(target).pos(pos).batch(batch), 4)?;
            let complete = $complete && target == Target::Unembed;
            let error = if complete { attrs.residual_error().ok() } else { None };
            Ok((found(attrs.tensor(), attrs.labels()), error))
        }};
    }
    match case.analysis {
        0 => stack!(decompose_resid, DecomposeOptions::new()),
        1 => stack!(stack_head_results, HeadOptions::new().incl_remainder(true)),
        2 => stack!(stack_neuron_results, NeuronOptions::new().neurons((0, 1000, 5)).incl_remainder(true)),
        3 => stack!(get_full_resid_decomposition, FullOptions::new()),
        4 => stack!(accumulated_resid, AccumulateOptions::new()),
        5 => {
            let lens = cache.logit_lens(LensOptions::new().target(target).pos(pos).batch(batch))?;
            Ok((found(lens.logits(), lens.labels()), None))
        }
        6 => attrs!(HeadOptions::new().incl_remainder(true), true),
        7 => attrs!(FullOptions::new(), true),
        _ => {
            let stack = cache.decompose_resid(DecomposeOptions::new().target(target).pos(pos).batch(batch))?;
            let attrs = stack.logit_attrs(4)?;
            let error = if target == Target::Unembed { attrs.residual_error().ok() } else { None };
            Ok((found(attrs.tensor(), attrs.labels()), error))
        }
    }
}

fn something_else(tensor: &Tensor) -> Tensor {
    match tensor.kind() {
        Kind::Float => tensor * 0.5 + 0.01,
        _ => tensor.flip([-1]),
    }
}

/// A model that is loaded when a case first asks for it.
struct Model {
    name: String,
    loaded: OnceCell<HookedTransformer>,
}

impl Model {
    fn get(&self) -> &HookedTransformer {
        self.loaded.get_or_init(|| match self.name.strip_prefix("encoder of ") {
            Some(folder) => pair(folder).encoder().clone(),
            None => match self.name.strip_prefix("decoder of ") {
                Some(folder) => pair(folder).decoder_of(Tensor::from_slice2(&[[2i64, 3, 4], [1, 0, 2]])).unwrap(),
                None => raw(&self.name),
            },
        })
    }
}

fn pair(folder: &str) -> HookedEncoderDecoder {
    LoadOptions::new().no_processing().open_encoder_decoder(fixtures().join("encoder_decoders").join(folder)).unwrap()
}

/// All fixtures: decoders, encoders, and the two stacks of encoder-decoders.
fn models() -> Vec<Model> {
    let folders = |of: &str| {
        let folders = std::fs::read_dir(fixtures().join(of)).unwrap();
        let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let loads = |name: &String| !REFUSED.iter().any(|(refused, _)| refused == name);
    let others = folders("transformers").into_iter().filter(loads).map(|name| format!("transformers/{name}"));
    let pairs = folders("encoder_decoders")
        .into_iter()
        .flat_map(|name| [format!("encoder of {name}"), format!("decoder of {name}")]);
    let names = families().into_iter().chain(others).chain(pairs);
    names.map(|name| Model { name, loaded: OnceCell::new() }).collect()
}

/// Runs a case: whether the analysis was right, or refused with an error.
fn check(models: &[Model], case: &Case) -> std::result::Result<bool, String> {
    let model = &models[case.family % models.len()];
    let (family, model) = (&model.name, model.get());
    let rows: Vec<Vec<i64>> =
        case.lens.iter().map(|len| (0..*len as i64).map(|i| (3 * i + *len as i64) % 5).collect()).collect();
    let side = if case.left { PaddingSide::Left } else { PaddingSide::Right };
    let tokens = Tokens::padded(&rows, 0, side).unwrap();
    let all: Vec<HookPoint> =
        model.run(&tokens, RunOptions::new().cache(HookFilter::All)).unwrap().cache.keys().collect();
    let changed = case.changed.map(|i| all[i % all.len()]);
    let hooks = || match changed {
        Some(point) => Hooks::new().replace(point, |tensor, _| something_else(tensor)),
        None => Hooks::new(),
    };
    let names: Vec<HookPoint> = all
        .iter()
        .copied()
        .enumerate()
        .filter(|(i, _)| case.left_out == 0 || (i + 1) % case.left_out != 0)
        .map(|(_, point)| point)
        .collect();
    let run = RunOptions::new().hooks(hooks()).cache(names).pos(case.kept.clone()).logits_at(case.logits_at.clone());
    let Ok(outcome) = model.run(&tokens, run) else { return Ok(false) };
    let mut cache = outcome.cache;
    // Which rows of the batch the cache has.
    let mut held: Vec<i64> = vec![0, 1];
    if let Some(batch) = &case.batch {
        cache = match cache.apply_slice_to_batch_dim(batch.clone()) {
            Ok(cache) => cache,
            Err(Error::NoEntry { .. }) => return Ok(false), // experts' rows without their indices
            Err(error) => return Err(format!("{family}: the batch: {error}")),
        };
        held = batch.indices(2, "batch").unwrap();
    }
    let targets = targets(model);
    let target = targets[case.target % targets.len()];
    let (pos, batch) = (case.window_pos.clone(), case.window_batch.clone());
    let ours = match analyse(&cache, case, target, pos.clone(), batch.clone()) {
        Ok(ours) => ours,
        // libtorch's own words for a mismatch, which a typed error should have come before.
        Err(Error::Torch(error)) => return Err(format!("{family}: {error}")),
        Err(_) => return Ok(false),
    };
    let (ours, residual_error) = ours;

    // The same of the whole run, row by row, at the columns that were meant.
    let whole = model.run(&tokens, RunOptions::new().hooks(hooks()).cache(HookFilter::All)).unwrap().cache;
    let chosen: Vec<i64> = match cache.has_batch_dim() {
        true => batch.indices(held.len() as i64, "batch").unwrap().into_iter().map(|i| held[i as usize]).collect(),
        false => held.clone(),
    };
    if chosen.is_empty() {
        return Ok(true);
    }
    let columns = cache.decompose_columns(case, &chosen, &tokens, side);
    let expected = analyse(&whole, case, target, Positions::default(), Slice::All);
    let (expected, _) = expected.map_err(|error| format!("{family}: the whole run: {error}"))?;
    if expected.labels != ours.labels {
        return Err(format!("{family}: labels {:?} and {:?}", ours.labels, expected.labels));
    }
    let per_row: Vec<Tensor> = chosen
        .iter()
        .zip(&columns)
        .map(|(row, columns)| expected.values.select(1, *row).index_select(1, &Tensor::from_slice(columns)))
        .collect();
    let mut theirs = Tensor::stack(&per_row, 1); // [row, batch, pos, …]
    if drops(&pos) {
        theirs = theirs.squeeze_dim(2);
    }
    if !cache.has_batch_dim() || batch.drops_axis() {
        theirs = theirs.squeeze_dim(1);
    }
    if ours.values.size() != theirs.size() {
        return Err(format!("{family}: shape {:?}, expected {:?}", ours.values.size(), theirs.size()));
    }
    if theirs.numel() == 0 {
        return Ok(true);
    }
    let largest = theirs.abs().max().double_value(&[]).max(1.0);
    let diff = (&ours.values - &theirs).abs().max().double_value(&[]) / largest;
    if diff.is_nan() || diff > TOLERANCE {
        return Err(format!("{family}, {changed:?} changed, at {target}: differs by {diff:.3e}"));
    }
    match residual_error {
        Some(error) if error.is_nan() || error / largest > TOLERANCE => {
            Err(format!("{family}: residual error {error:.3e}"))
        }
        _ => Ok(true),
    }
}

fn drops(positions: &Positions) -> bool {
    match positions {
        Positions::Slice(slice) => slice.drops_axis(),
        Positions::LastToken | Positions::PerRow(_) => true,
        Positions::WithPadding(positions) => drops(positions),
    }
}

/// What a case's window means by hand: the columns of each chosen row.
trait ByHand {
    fn decompose_columns(&self, case: &Case, chosen: &[i64], tokens: &Tokens, side: PaddingSide) -> Vec<Vec<i64>>;
}

impl ByHand for ActivationCache {
    fn decompose_columns(&self, case: &Case, chosen: &[i64], tokens: &Tokens, side: PaddingSide) -> Vec<Vec<i64>> {
        let len = tokens.ids.size()[1];
        let last = |row: i64| match side {
            PaddingSide::Left => len - 1,
            PaddingSide::Right => case.lens[row as usize] as i64 - 1,
        };
        let of = |positions: &Positions, place: usize, row: i64| -> Vec<i64> {
            let mut inner = positions;
            while let Positions::WithPadding(positions) = inner {
                inner = positions;
            }
            match inner {
                Positions::Slice(slice) => slice.indices(len, "position").unwrap(),
                Positions::LastToken => vec![last(row)],
                Positions::PerRow(columns) => vec![columns[place].rem_euclid(len)],
                Positions::WithPadding(_) => unreachable!("the loop goes through these"),
            }
        };
        let is_all = |positions: &Positions| {
            let mut inner = positions;
            while let Positions::WithPadding(positions) = inner {
                inner = positions;
            }
            matches!(inner, Positions::Slice(Slice::All))
        };
        let columns = chosen.iter().enumerate().map(|(place, row)| match is_all(&case.window_pos) {
            // All that the run kept; one position for each row counts rows of the run.
            true => of(&case.kept, *row as usize, *row),
            false => of(&case.window_pos, place, *row),
        });
        columns.collect()
    }
}

#[test]
fn every_analysis_of_any_run_is_right_or_an_error() {
    const NAME: &str = "any_run::every_analysis_of_any_run_is_right_or_an_error";
    if child::argument().is_none() {
        // Thousands of small products take a tenth of the time on one thread.
        let printed = child::run(NAME, "", |child| {
            child.env("OMP_NUM_THREADS", "1");
        });
        return println!("{}", printed.unwrap_or_else(|failure| panic!("{failure}")));
    }
    let cases = std::env::var("TCH_LENS_CASES").map_or(300, |cases| cases.parse().unwrap());
    let models = models();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let (right, refused) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let found = TestRunner::new(config).run(&case(), |case| match check(&models, &case) {
        Ok(is_right) => {
            let count = if is_right { &right } else { &refused };
            count.set(count.get() + 1);
            Ok(())
        }
        Err(sentence) => Err(TestCaseError::fail(sentence)),
    });
    println!("{} right, {} refused", right.get(), refused.get());
    match found {
        Ok(()) => assert!(right.get() * 4 > refused.get(), "too few analyses are tried to the end"),
        Err(TestError::Fail(reason, case)) => panic!("{reason}: {case:#?}"),
        Err(abort) => panic!("{abort}"),
    }
}
