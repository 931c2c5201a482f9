//! Answers are those that a loop over the files gives.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, Float64Type, Int64Type};
use tch_lens::HookedTransformer;
use tch_lens_harvest::query::{Measure, Query, TopOptions};
use tch_lens_harvest::{harvest, DType, Job, PlanOptions, ShardId};

use crate::support::{documents, job, lines, options, plan, store, Outcome, NEURONS, POINT};

/// A token, and what the two points hold there.
type TokenRow = (i64, Vec<f32>, Vec<f32>);

/// A harvest of each kind of column, and all its activations by a run of each row alone.
struct Harvested {
    _folder: tempfile::TempDir,
    job: Job,
    query: Query,
    /// `[shard, row, position]`, the token, and the activations of [`POINT`] and of [`NEURONS`].
    expected: BTreeMap<(u32, u32, u32), TokenRow>,
}

fn harvested(options: PlanOptions) -> Result<Harvested, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("harvest");
    let job = job(&plan(options, &lines(folder.path(), &documents(40)))?, &place)?;
    harvest(&job, job.manifest().shards(), |_| ())?;
    let query = Query::open(&store(&place))?;
    let model = HookedTransformer::toy()?;
    let mut expected = BTreeMap::new();
    for batch in query.sql("SELECT shard, row, tokens FROM rows")? {
        let [shard, row] = [0, 1].map(|at| batch.column(at).as_primitive::<arrow_array::types::UInt32Type>().clone());
        for at in 0..batch.num_rows() {
            let tokens = batch.column(2).as_list::<i32>().value(at);
            let tokens: Vec<i64> =
                tokens.as_primitive::<arrow_array::types::UInt32Type>().values().iter().map(|&id| id.into()).collect();
            let (_, cache) = model.run_with_cache_of(tokens.clone(), [POINT, NEURONS])?;
            let numbers = |point: &str, position: usize| -> Result<Vec<f32>, Box<dyn std::error::Error>> {
                Ok(Vec::try_from(cache.get(point)?.get(0).get(position as i64).contiguous().view(-1))?)
            };
            for (position, &token) in tokens.iter().enumerate() {
                let place = (shard.value(at), row.value(at), position as u32);
                expected.insert(place, (token, numbers(POINT, position)?, numbers(NEURONS, position)?));
            }
        }
    }
    Ok(Harvested { _folder: folder, job, query, expected })
}

#[test]
fn sql_answers_over_all_shards() -> Outcome {
    let harvested = harvested(options())?;
    let Harvested { job, query, expected, .. } = &harvested;
    let counted = query.sql("SELECT count(*), count(DISTINCT shard), sum(token) FROM activations")?;
    let number = |at: usize| counted[0].column(at).as_primitive::<Int64Type>().value(0);
    assert_eq!(number(0), expected.len() as i64);
    assert_eq!(number(1), job.manifest().shards.len() as i64);
    let sum = query.sql("SELECT CAST(sum(token) AS BIGINT) FROM activations")?;
    assert_eq!(
        sum[0].column(0).as_primitive::<Int64Type>().value(0),
        expected.values().map(|(token, ..)| token).sum::<i64>()
    );
    // Entries of a list count from 1.
    let means = query.sql(&format!(
        "SELECT CAST(avg(\"{POINT}\"[4]) AS DOUBLE), CAST(avg(floats(\"{NEURONS}\")[8]) AS DOUBLE) FROM activations"
    ))?;
    let mean = |of: &dyn Fn(&TokenRow) -> f32| {
        expected.values().map(|numbers| f64::from(of(numbers))).sum::<f64>() / expected.len() as f64
    };
    for (at, expected) in [mean(&|(_, point, _)| point[3]), mean(&|(_, _, neurons)| neurons[7])].into_iter().enumerate()
    {
        let found = means[0].column(at).as_primitive::<Float64Type>().value(0);
        println!("mean {found}, by a loop {expected}, difference {:.1e}", (found - expected).abs());
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    let text = query.sql_text("SELECT shard, tokens FROM shards ORDER BY shard LIMIT 1")?;
    assert!(text.contains("| shard | tokens |"), "{text}");
    // The tables fit together.
    let joined = query.sql(
        "SELECT count(*) FROM activations a JOIN rows r ON a.shard = r.shard AND a.row = r.row WHERE r.tokens[a.position + 1] = a.token",
    )?;
    assert_eq!(joined[0].column(0).as_primitive::<Int64Type>().value(0), expected.len() as i64);
    Ok(())
}

#[test]
fn sql_only_asks() -> Outcome {
    let harvested = harvested(options())?;
    let Harvested { query, _folder, .. } = &harvested;
    let out = _folder.path().join("out.parquet");
    for question in [
        format!("COPY activations TO '{}'", out.display()),
        format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}'", _folder.path().display()),
        "DROP TABLE rows".into(),
        "SET datafusion.execution.batch_size = 1".into(),
        "SELECT nothing FROM activations".into(),
    ] {
        let error = query.sql(&question).unwrap_err().to_string();
        println!("{question}: {error}");
        assert!(!error.is_empty());
    }
    assert!(!out.exists());
    Ok(())
}

#[test]
fn top_examples_are_the_largest_with_their_context() -> Outcome {
    let harvested = harvested(options())?;
    let Harvested { query, expected, .. } = &harvested;
    let channel = 11;
    let found = query.top_examples(NEURONS, channel, TopOptions::new(12).any_document())?;
    let mut values: Vec<f32> = expected.values().map(|(_, _, neurons)| neurons[channel]).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let largest = found.iter().zip(&values).map(|(found, expected)| (found.value - expected).abs()).fold(0.0, f32::max);
    println!("top values differ by at most {largest:.1e} (fp16)");
    assert!(largest < 2e-3);
    assert_eq!(found.len(), 12);
    let contexts = query.contexts(&found, 3, 2)?;
    for (example, context) in found.iter().zip(&contexts) {
        let (token, _, neurons) = &expected[&(example.shard.0, example.row, example.position)];
        assert!((neurons[channel] - example.value).abs() < 2e-3);
        assert_eq!(i64::from(example.token), *token);
        assert_eq!(context.tokens[context.at], example.token);
        assert_eq!(context.at, 3.min(example.position as usize));
        for (n, &token) in context.tokens.iter().enumerate() {
            let position = example.position + n as u32 - context.at as u32;
            assert_eq!(i64::from(token), expected[&(example.shard.0, example.row, position)].0);
        }
    }
    let [before, token, after] = contexts[0].texts(&query.tokenizer()?)?;
    println!("{before}[{token}]{after}");
    assert!(!token.is_empty());
    let single = query.top_examples(NEURONS, channel, TopOptions::new(12))?;
    let mut documents: Vec<u64> = single.iter().map(|example| example.document).collect();
    documents.sort_unstable();
    documents.dedup();
    assert_eq!(documents.len(), single.len());
    assert_eq!(single[0], found[0]);
    Ok(())
}

#[test]
fn nearest_density_histogram_and_pairs_are_those_of_a_loop() -> Outcome {
    let harvested = harvested(options())?;
    let Harvested { query, expected, .. } = &harvested;
    let (_, direction, _) = expected.values().nth(5).unwrap();
    let found = query.nearest(POINT, direction, Measure::Cosine, TopOptions::new(5).any_document())?;
    assert!((found[0].value - 1.0).abs() < 1e-5, "{}", found[0].value);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let best = expected.values().map(|(_, point, _)| dot(point, direction)).fold(f64::NEG_INFINITY, f64::max);
    let by_dot = query.nearest(POINT, direction, Measure::Dot, TopOptions::new(1))?;
    println!("nearest by product: {}, by a loop {best}", by_dot[0].value);
    assert!((f64::from(by_dot[0].value) - best).abs() < 1e-4 * best.abs());

    let density = query.density(NEURONS, 0.25)?;
    let together = query.co_activation(NEURONS, &[3, 11, 20], 0.25)?;
    assert_eq!(density.activations, expected.len() as u64);
    // The column is of fp16, which may move a number to the threshold.
    let stored = |number: f32| half::f16::from_f32(number).to_f32();
    for (channel, &active) in density.active.iter().enumerate() {
        let by_loop = expected.values().filter(|(_, _, neurons)| stored(neurons[channel]) > 0.25).count() as u64;
        assert_eq!(active, by_loop, "{channel}");
    }
    for (at, channel) in [3, 11, 20].into_iter().enumerate() {
        assert_eq!(together.together[at][at], density.active[channel]);
        assert!((0.0..=1.0).contains(&together.jaccard(0, at)));
    }
    let active = |neurons: &[f32], channel: usize| stored(neurons[channel]) > 0.25;
    let both = expected.values().filter(|(_, _, neurons)| active(neurons, 3) && active(neurons, 11)).count() as u64;
    assert_eq!(together.together[0][1], both);

    let histogram = query.histogram(POINT, 2, 10, None)?;
    assert_eq!(histogram.counts.iter().sum::<u64>(), expected.len() as u64);
    let part = query.histogram(POINT, 2, 4, Some((-0.5, 0.5)))?;
    let below = expected.values().filter(|(_, point, _)| point[2] < -0.5).count() as u64;
    let above = expected.values().filter(|(_, point, _)| point[2] > 0.5).count() as u64;
    assert_eq!((part.below, part.above), (below, above));
    assert_eq!(part.counts.iter().sum::<u64>() + below + above, expected.len() as u64);
    Ok(())
}

#[test]
fn sparse_and_bf16_columns_are_read() -> Outcome {
    let options = PlanOptions::new("toy")
        .top_k(POINT, DType::Fp16, 4)
        .point("blocks.0.hook_resid_pre", DType::Bf16)
        .shard_tokens(400)
        .batch_tokens(256);
    let harvested = harvested(options)?;
    let Harvested { query, expected, .. } = &harvested;
    // Of the kept largest entries, the largest in a channel are its largest.
    let found = query
        .sql(&format!("SELECT CAST(count(*) AS BIGINT) FROM activations WHERE cardinality(\"{POINT}.index\") = 4"))?;
    assert_eq!(found[0].column(0).as_primitive::<Int64Type>().value(0), expected.len() as i64);
    let top = query.top_examples(POINT, 5, TopOptions::new(3).any_document())?;
    let largest = expected.values().map(|(_, point, _)| point[5]).fold(f32::NEG_INFINITY, f32::max);
    println!("largest kept entry {}, largest entry {largest}", top[0].value);
    let bf16 = query.sql("SELECT floats(\"blocks.0.hook_resid_pre\")[1] FROM activations LIMIT 3")?;
    assert_eq!(bf16.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
    let first = bf16[0].column(0).as_primitive::<Float32Type>();
    assert!(first.values().iter().all(|value| value.is_finite()));
    assert!(query.density(POINT, f32::NEG_INFINITY)?.active.iter().sum::<u64>() == 4 * expected.len() as u64);
    Ok(())
}

#[test]
fn wrong_questions_are_one_sentence() -> Outcome {
    let harvested = harvested(options())?;
    let Harvested { query, job, .. } = &harvested;
    let top = TopOptions::new(1);
    let errors = [
        query.top_examples("blocks.9.hook_resid_post", 0, top).unwrap_err().to_string(),
        query.top_examples("token", 0, top).unwrap_err().to_string(),
        query.top_examples(POINT, 100_000, top).unwrap_err().to_string(),
        query.nearest(POINT, &[1.0], Measure::Dot, top).unwrap_err().to_string(),
        query.nearest(POINT, &[0.0; 4], Measure::Dot, top).unwrap_err().to_string(),
        query.histogram(POINT, 0, 0, None).unwrap_err().to_string(),
        query.histogram(POINT, 0, 3, Some((1.0, 1.0))).unwrap_err().to_string(),
        query.co_activation(POINT, &[1, 2, 1], 0.0).unwrap_err().to_string(),
    ];
    for error in &errors {
        println!("{error}");
        assert!(!error.contains('\n'));
    }
    assert!(errors[0].contains("it has `blocks.1.hook_resid_post`"), "{}", errors[0]);
    let mut example = query.top_examples(POINT, 0, top)?.remove(0);
    example.shard = ShardId(job.manifest().shards.len() as u32);
    assert!(query.contexts(&[example], 1, 1).is_err());
    let folder = tempfile::tempdir()?;
    let error = Query::open(&store(folder.path())).unwrap_err().to_string();
    assert!(error.contains("harvest plan"), "{error}");
    let planned = crate::support::job(job.manifest(), folder.path())?;
    let error = Query::open(planned.store()).unwrap_err().to_string();
    assert!(error.contains("has no shard yet"), "{error}");
    Ok(())
}
