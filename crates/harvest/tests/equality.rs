//! Each kept activation is that of its row alone, and the files say what they should.

mod support;

use std::collections::HashMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float16Type, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{Array as _, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use support::{documents, job, lines, options, plan, store, Outcome, NEURONS, POINT};
use tch_lens::sae::{Dictionary, DictionaryConfig, DictionaryWeights, FeatureActivation};
use tch_lens::tch::{Kind, Tensor};
use tch_lens::{hook, HookedTransformer};
use tch_lens_harvest::manifest::{LongDocuments, PositionSelection, Positions, Rows};
use tch_lens_harvest::{harvest, ActivationStore, DType, Format, Job, PlanOptions, PointStatistics};

/// Numbers that look random and are always the same.
fn normal(shape: &[i64]) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Float, tch_lens::tch::Device::Cpu)) * 12.9898).sin().view(shape)
}

/// The batches of a Parquet file.
fn table(job: &Job, path: &str) -> Vec<RecordBatch> {
    let bytes = job.store().get(path).unwrap().unwrap();
    ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap).collect()
}

/// The rows that the model read: tokens of each.
fn model_rows(job: &Job, shard: tch_lens_harvest::ShardId) -> Vec<Vec<i64>> {
    let mut rows = Vec::new();
    for batch in table(job, &shard.rows_path()) {
        let lists = batch["tokens"].as_list::<i32>();
        rows.extend(lists.iter().map(|list| {
            list.unwrap().as_primitive::<UInt32Type>().values().iter().map(|&id| i64::from(id)).collect::<Vec<i64>>()
        }));
    }
    rows
}

/// The largest difference between a harvest and `run_with_cache` of each of its rows alone; how many rows were kept.
fn compare(options: PlanOptions) -> Result<(f64, usize, Job, tempfile::TempDir), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(60));
    let job = job(&plan(options, &corpus)?, &folder.path().join("harvest"))?;
    harvest(&job, job.manifest().shards(), |_| ())?;
    let model = HookedTransformer::toy()?;
    let (mut largest, mut seen): (f64, usize) = (0.0, 0);
    for shard in job.manifest().shards() {
        let mut expected: HashMap<u32, [Tensor; 2]> = HashMap::new();
        for (n, tokens) in model_rows(&job, shard).into_iter().enumerate() {
            let (_, cache) = model.run_with_cache_of(tokens, [POINT, NEURONS])?;
            expected.insert(n as u32, [POINT, NEURONS].map(|point| cache.get(point).unwrap().squeeze_dim(0)));
        }
        for batch in table(&job, &shard.parquet_path()) {
            let rows = batch["row"].as_primitive::<UInt32Type>().values();
            let positions = batch["position"].as_primitive::<UInt32Type>().values();
            for n in 0..batch.num_rows() {
                let [stream, neurons] = &expected[&rows[n]];
                let found = batch[POINT].as_fixed_size_list().value(n);
                let found = Tensor::from_slice(found.as_primitive::<Float32Type>().values());
                let difference = (found - stream.get(positions[n].into())).abs().max().double_value(&[]);
                largest = largest.max(difference);
                let found = batch[NEURONS].as_fixed_size_list().value(n);
                let found = Tensor::from_slice(found.as_primitive::<Float16Type>().values());
                let neurons = neurons.get(positions[n].into());
                // Half precision has 11 bits.
                let bound = neurons.abs() * (1.0 / 2048.0) + 1e-5;
                assert!((found.to_kind(Kind::Float) - neurons).abs().le_tensor(&bound).all().int64_value(&[]) == 1);
                seen += 1;
            }
        }
    }
    println!("{seen} activations, largest difference {largest:e}");
    Ok((largest, seen, job, folder))
}

#[test]
fn packed_rows_equal_run_with_cache() -> Outcome {
    let (largest, seen, job, _folder) = compare(options())?;
    assert!(largest < 1e-5, "{largest}");
    assert!(job.manifest().shards.len() > 2 && seen > 800, "{seen}");
    Ok(())
}

#[test]
fn documents_in_rows_of_their_own_equal_the_texts_alone() -> Outcome {
    let rows = Rows::Documents { long: LongDocuments::Refuse };
    let (largest, seen, job, _folder) = compare(options().rows(rows))?;
    assert!(largest < 1e-5, "{largest}");
    // Each row is the text as `run_with_cache` takes it, BOS first.
    let model = HookedTransformer::toy()?;
    let mut expected: Vec<Vec<i64>> =
        documents(60).into_iter().map(|text| model.to_tokens(text).unwrap().rows().unwrap().remove(0)).collect();
    let mut found: Vec<Vec<i64>> = job.manifest().shards().flat_map(|shard| model_rows(&job, shard)).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(seen, expected.iter().map(Vec::len).sum::<usize>());
    Ok(())
}

#[test]
fn long_documents_are_split_or_cut_as_asked() -> Outcome {
    let of = |long| options().rows(Rows::Documents { long }).context(9);
    let (largest, split, job, _folder) = compare(of(LongDocuments::Split))?;
    assert!(largest < 1e-5, "{largest}");
    let rows: Vec<Vec<i64>> = job.manifest().shards().flat_map(|shard| model_rows(&job, shard)).collect();
    let bos = HookedTransformer::toy()?.tokenizer()?.bos_id().unwrap();
    assert!(rows.iter().all(|row| row.len() <= 9 && row[0] == bos && row[1..].iter().all(|&id| id != bos)));
    let (largest, cut, ..) = compare(of(LongDocuments::Truncate))?;
    assert!(largest < 1e-5 && cut < split, "{cut} {split}");
    Ok(())
}

#[test]
fn only_chosen_positions_are_kept() -> Outcome {
    let these = PositionSelection { of: Positions::These(vec![0, -1, 5]), without_bos: true };
    let (largest, seen, job, _folder) = compare(options().positions(these))?;
    assert!(largest < 1e-5, "{largest}");
    let bos = HookedTransformer::toy()?.tokenizer()?.bos_id().unwrap();
    let mut expected = 0;
    for row in job.manifest().shards().flat_map(|shard| model_rows(&job, shard)) {
        let mut positions = vec![row.len() - 1];
        positions.extend((row.len() > 6).then_some(5)); // 0 is always BOS
        expected += positions.into_iter().filter(|&position| row[position] != bos).count();
    }
    assert_eq!(seen, expected);
    Ok(())
}

/// Token, document and text of each row belong together.
#[test]
fn each_row_knows_its_token_document_and_text() -> Outcome {
    let (_, _, job, _folder) = compare(options())?;
    let (texts, model) = (documents(60), HookedTransformer::toy()?);
    let tokenizer = model.tokenizer()?;
    let mut seen = vec![0; 60];
    for shard in job.manifest().shards() {
        let rows = model_rows(&job, shard);
        for batch in table(&job, &shard.parquet_path()) {
            let [row, position, token] =
                ["row", "position", "token"].map(|name| batch[name].as_primitive::<UInt32Type>().clone());
            let [document, start, end] =
                ["document", "text_start", "text_end"].map(|name| batch[name].as_primitive::<UInt64Type>().clone());
            for n in 0..batch.num_rows() {
                let id = rows[row.value(n) as usize][position.value(n) as usize];
                assert_eq!(id, i64::from(token.value(n)));
                if start.is_null(n) {
                    assert_eq!(Some(id), tokenizer.bos_id());
                    continue;
                }
                let document = document.value(n) as usize;
                seen[document] += 1;
                let text = &texts[document][start.value(n) as usize..end.value(n) as usize];
                assert_eq!(tokenizer.str_tokens(&[id])?[0].trim(), text.trim());
            }
        }
    }
    for (document, &seen) in seen.iter().enumerate() {
        assert_eq!(seen, tokenizer.encode(&texts[document], false)?.len(), "document {document}");
    }
    Ok(())
}

#[test]
fn the_largest_entries_and_features_are_sparse_columns() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(20));
    let weights = DictionaryWeights {
        w_enc: normal(&[64, 128]),
        b_enc: normal(&[64]) - 10.0,
        w_dec: normal(&[64, 128]),
        b_dec: normal(&[128]),
        w_skip: None,
        threshold: None,
        b_gate: None,
        r_mag: None,
    };
    let dictionary = Dictionary::new(DictionaryConfig::new(hook::resid_post(2), FeatureActivation::Relu), weights)?;
    let saved = folder.path().join("dictionary");
    dictionary.save_saelens(&saved)?;
    let read = dictionary.hook_in().to_string();
    let options = PlanOptions::new("toy")
        .top_k(POINT, DType::Fp32, 3)
        .dictionary(read.clone(), DType::Fp32, saved.display().to_string())
        .formats([Format::Parquet, Format::Safetensors]);
    let job = job(&plan(options, &corpus)?, &folder.path().join("harvest"))?;
    harvest(&job, job.manifest().shards(), |_| ())?;
    let model = HookedTransformer::toy()?;
    let mut largest: f64 = 0.0;
    let mut active = 0;
    for shard in job.manifest().shards() {
        let rows = model_rows(&job, shard);
        let caches: Vec<_> = rows
            .iter()
            .map(|row| model.run_with_cache_of(row, [POINT, read.as_str()]).map(|(_, cache)| cache))
            .collect::<Result<_, _>>()?;
        for batch in table(&job, &shard.parquet_path()) {
            for n in 0..batch.num_rows() {
                let row = batch["row"].as_primitive::<UInt32Type>().value(n) as usize;
                let position = i64::from(batch["position"].as_primitive::<UInt32Type>().value(n));
                let dense = |width: i64, name: &str| {
                    let index = batch[format!("{name}.index").as_str()].as_list::<i32>().value(n);
                    let value = batch[format!("{name}.value").as_str()].as_list::<i32>().value(n);
                    let index: Vec<i64> =
                        index.as_primitive::<UInt32Type>().values().iter().map(|&i| i64::from(i)).collect();
                    assert!(index.is_sorted());
                    let value = Tensor::from_slice(value.as_primitive::<Float32Type>().values());
                    Tensor::zeros([width], (Kind::Float, value.device())).index_copy(
                        0,
                        &Tensor::from_slice(&index),
                        &value,
                    )
                };
                let stream = caches[row].get(POINT)?.squeeze_dim(0).get(position);
                let (value, index) = stream.topk(3, -1, true, true);
                let expected = stream.zeros_like().index_copy(0, &index, &value);
                largest = largest.max((dense(128, POINT) - expected).abs().max().double_value(&[]));
                let expected =
                    dictionary.encode(&caches[row].get(read.as_str())?.squeeze_dim(0).get(position).unsqueeze(0))?;
                active += expected.count_nonzero(None).int64_value(&[]);
                let found = dense(dictionary.d_sae() as i64, &read);
                let size = 1.0 + expected.abs().max().double_value(&[]); // features are sums of a hundred products
                largest = largest.max((found - expected.squeeze_dim(0)).abs().max().double_value(&[]) / size);
            }
        }
    }
    println!("{active} active features, largest difference {largest:e}");
    assert!(largest < 1e-5 && active > 0, "{largest} {active}");
    Ok(())
}

#[test]
fn statistics_and_batches_are_those_of_all_activations() -> Outcome {
    let (_, seen, job, folder) = compare(options())?;
    let mut all = Vec::new();
    for shard in job.manifest().shards() {
        for batch in table(&job, &shard.parquet_path()) {
            all.extend_from_slice(batch[POINT].as_fixed_size_list().values().as_primitive::<Float32Type>().values());
        }
    }
    let all = Tensor::from_slice(&all).view([-1, 128]);
    let found = PointStatistics::of_harvest(&job)?.remove(0);
    let (mean, variance) = (Tensor::from_slice(&found.mean), Tensor::from_slice(&found.variance()));
    let double = all.to_kind(Kind::Double);
    let largest = (&mean - double.mean_dim(0, false, Kind::Double)).abs().max().double_value(&[]);
    let of_variance = (&variance - double.var_dim(0, false, false)).abs().max().double_value(&[]);
    println!("largest difference: mean {largest:e}, variance {of_variance:e}");
    assert!(largest < 1e-9 && of_variance < 1e-9);
    assert_eq!(found.count as usize, seen);

    // Every row comes once, in an order of the seed; memory is bounded.
    let memory = 3 << 19;
    let batches = ActivationStore::open(&store(&folder.path().join("harvest")), POINT)?.batch_size(100).memory(memory);
    let mut epoch = batches.epoch(1)?;
    let (mut shown, mut most) = (Vec::new(), 0);
    while let Some(batch) = epoch.next() {
        shown.push(batch?);
        most = most.max(epoch.held());
    }
    println!("{most} bytes held of {memory}");
    assert!(most > 0 && most <= memory);
    let again: Vec<Tensor> = batches.epoch(1)?.collect::<Result<_, _>>()?;
    let other: Vec<Tensor> = batches.epoch(2)?.collect::<Result<_, _>>()?;
    assert!(shown.iter().zip(&again).all(|(a, b)| a == b));
    let [shown, other] = [shown, other].map(|batches| Tensor::cat(&batches, 0));
    assert_ne!(shown, other);
    let sorted = |x: &Tensor| x.sum_dim_intlist(1, false, Kind::Double).sort(0, false).0;
    assert_eq!(shown.size(), all.size());
    let largest = (sorted(&shown) - sorted(&all)).abs().max().double_value(&[]);
    assert!(largest == 0.0, "{largest}");
    let small = batches.memory(1000).epoch(1).err().unwrap().to_string();
    assert!(small.contains("do not hold a shard"), "{small}");
    Ok(())
}
