//! Bad input and bad stores: one clear sentence each, and nothing lost.

mod support;

use std::fs;
use std::process::Command;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
use support::{assert_equal, documents, files, job, lines, options, plan, store, Outcome, POINT};
use tch_lens::tch::Device;
use tch_lens::{HookedTransformer, LoadOptions};
use tch_lens_harvest::manifest::{CorpusFormat, LongDocuments, Rows};
use tch_lens_harvest::{harvest, verify, DType, Error, Job, PlanOptions, ShardId};

fn said<T>(result: tch_lens_harvest::Result<T>) -> String {
    let error = result.err().expect("an error").to_string();
    println!("{error}");
    assert!(!error.contains('\n') && !error.ends_with('.'), "{error}");
    error
}

#[test]
fn an_empty_corpus_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &[]);
    assert!(said(plan(options(), &corpus)).contains("the corpus is empty"));
    let blank = lines(folder.path(), &["  ".into(), String::new()]);
    assert!(said(plan(options(), &blank)).contains("corpus.txt` have no document"));
    let none = options().plan(&HookedTransformer::toy().unwrap(), CorpusFormat::Lines, &[]);
    assert!(said(none).contains("the corpus is empty: no files"));
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus.txt");
    fs::write(&corpus, b"Mary and John\nMary \xff John\n").unwrap();
    assert!(said(plan(options(), &corpus)).contains("corpus.txt` cannot be read as a text: byte 19 is not UTF-8"));
}

#[test]
fn a_missing_file_is_an_error() {
    assert!(said(plan(options(), "/nowhere/corpus.txt".as_ref())).contains("cannot read `/nowhere/corpus.txt`"));
}

#[test]
fn a_missing_column_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = HookedTransformer::toy().unwrap();
    let jsonl = folder.path().join("corpus.jsonl");
    fs::write(&jsonl, "{\"content\":\"Mary\",\"id\":1}\n").unwrap();
    let column = || "text".to_string();
    let format = CorpusFormat::JsonLines { column: column(), tokens: false };
    let error = said(options().plan(&model, format, &[jsonl.display().to_string()]));
    assert!(error.contains("has no column `text`: it has `content`, `id`"), "{error}");
    let parquet = folder.path().join("corpus.parquet");
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["Mary"]));
    write_parquet(&parquet, vec![("content", texts)]);
    let format = CorpusFormat::Parquet { column: column(), tokens: false };
    let error = said(options().plan(&model, format, &[parquet.display().to_string()]));
    assert!(error.contains("has no column `text`: it has `content`"), "{error}");
    let format = CorpusFormat::Parquet { column: "content".into(), tokens: true };
    let error = said(options().plan(&model, format, &[parquet.display().to_string()]));
    assert!(error.contains("its column `content` has Utf8, and not lists of whole numbers"), "{error}");
}

fn write_parquet(path: &std::path::Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Lines, JSON lines and Parquet of one corpus, tokenised already or not, are the same tokens.
#[test]
fn corpora_of_all_formats_have_the_same_activations() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (texts, model) = (documents(30), HookedTransformer::toy()?);
    let text = lines(folder.path(), &texts);
    let jsonl = folder.path().join("corpus.jsonl");
    let json: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
    fs::write(&jsonl, json)?;
    let parquet = folder.path().join("corpus.parquet");
    let tokens = |text: &String| model.tokenizer().unwrap().encode(text, false).unwrap();
    let ids = texts.iter().map(|text| Some(tokens(text).into_iter().map(|id| Some(id as i32)).collect::<Vec<_>>()));
    let ids: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(ids));
    let number: ArrayRef = Arc::new(Int64Array::from_iter_values(0..30));
    write_parquet(&parquet, vec![("n", number), ("ids", ids), ("text", Arc::new(StringArray::from(texts.clone())))]);
    let boundaries = tch_lens_harvest::manifest::Boundaries {
        bos_before_documents: true,
        bos_before_rows: true,
        eos_after_documents: false,
    };
    let mut all = Vec::new();
    for (n, (format, file)) in [
        (CorpusFormat::Lines, &text),
        (CorpusFormat::JsonLines { column: "text".into(), tokens: false }, &jsonl),
        (CorpusFormat::Parquet { column: "text".into(), tokens: false }, &parquet),
        (CorpusFormat::Parquet { column: "ids".into(), tokens: true }, &parquet),
    ]
    .into_iter()
    .enumerate()
    {
        // One shard in order, as blocks are of different sizes.
        let options = options().shuffle(false).shard_tokens(100_000).boundaries(boundaries);
        let manifest = options.plan(&model, format, &[file.display().to_string()])?;
        let harvested = folder.path().join(n.to_string());
        let job = job(&manifest, &harvested)?;
        harvest(&job, job.manifest().shards(), |_| ())?;
        all.push(files(&harvested)["statistics/000000.safetensors".as_ref() as &std::path::Path].clone());
    }
    assert!(all.iter().all(|statistics| *statistics == all[0]));
    Ok(())
}

#[test]
fn a_long_document_is_an_error_where_it_is_not_to_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    let rows = Rows::Documents { long: LongDocuments::Refuse };
    let manifest = plan(options().rows(rows).context(10), &corpus).unwrap();
    let job = job(&manifest, &folder.path().join("harvest")).unwrap();
    let error = said(harvest(&job, job.manifest().shards(), |_| ()));
    assert!(error.contains("tokens, but a row has 10: choose `--long split`"), "{error}");
}

#[test]
fn an_unknown_word_names_its_document() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &["Mary and John".into(), "Mary met a wumpus".into()]);
    let manifest = plan(options(), &corpus).unwrap();
    let job = job(&manifest, &folder.path().join("harvest")).unwrap();
    let error = said(harvest(&job, job.manifest().shards(), |_| ()));
    assert!(error.contains("document 1 cannot be tokenised: `wumpus`"), "{error}");
}

#[test]
fn settings_that_do_not_fit_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    assert!(said(plan(PlanOptions::new("toy"), &corpus)).contains("keeps at least one point"));
    let pattern = plan(PlanOptions::new("toy").point("blocks.0.attn.hook_pattern", DType::Fp32), &corpus);
    assert!(said(pattern).contains("has no activation for each token"));
    assert!(said(plan(options().point(POINT, DType::Bf16), &corpus)).contains("chosen twice"));
    assert!(said(plan(options().top_k(POINT, DType::Fp32, 129), &corpus)).contains("from 1 to 128, and not 129"));
    assert!(said(plan(options().context(65), &corpus)).contains("1 to 64 tokens"));
    assert!(said(plan(options().point("blocks.9.hook_resid_post", DType::Fp32), &corpus)).contains("layer"));
}

#[test]
fn another_model_and_changed_weights_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    let manifest = plan(options(), &corpus).unwrap();
    let harvested = store(&folder.path().join("harvest"));
    let changed = HookedTransformer::toy().unwrap();
    let mut embedding = changed.w_e().unwrap().get(5);
    let _ = tch_lens::tch::no_grad(|| embedding.f_fill_(0.5)).unwrap();
    let error = said(Job::new(manifest.clone(), changed, harvested.clone()));
    assert!(error.contains("the manifest is of another model: its weights' hash is"), "{error}");
    let raw = LoadOptions::new().no_processing().toy().unwrap();
    assert!(said(Job::new(manifest.clone(), raw, harvested.clone())).contains("its configuration's hash is"));
    let other = HookedTransformer::init(tch_lens::Config::new(1, 16, 2, 50, 12), 0).unwrap();
    assert!(said(Job::new(manifest, other, harvested)).contains("its configuration's hash is"));
}

#[test]
fn a_folder_holds_one_harvest() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    let harvested = folder.path().join("harvest");
    job(&plan(options(), &corpus).unwrap(), &harvested).unwrap();
    job(&plan(options(), &corpus).unwrap(), &harvested).unwrap(); // the same one
    let error = said(job(&plan(options().seed(1), &corpus).unwrap(), &harvested));
    assert!(error.contains("holds a harvest of another manifest"), "{error}");
    let none = Job::open(&store(&folder.path().join("nothing")), Device::Cpu);
    assert!(said(none).contains("has no `manifest.json`: plan the harvest first"));
}

#[test]
fn a_corpus_that_changed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut texts = documents(3);
    let corpus = lines(folder.path(), &texts);
    let manifest = plan(options(), &corpus).unwrap();
    texts[1] = texts[1].replace("Mary", "John").replace("France", "Norway").replace("keys", "cars");
    let swapped = fs::read_to_string(&corpus).unwrap().replace("France", "Franci").replace("keys", "kiys");
    fs::write(&corpus, swapped).unwrap();
    let job = job(&manifest, &folder.path().join("harvest")).unwrap();
    let error = said(harvest(&job, job.manifest().shards(), |_| ()));
    assert!(error.contains("is not the file that the harvest was planned with (its bytes differ)"), "{error}");
    fs::write(&corpus, "short").unwrap();
    let error = said(support::job(&manifest, &folder.path().join("another")));
    assert!(error.contains("it had") && error.contains("and has 5"), "{error}");
}

#[test]
fn a_store_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    let manifest = plan(options(), &corpus).unwrap();
    let error = said(job(&manifest, &corpus.join("harvest"))); // in a file
    assert!(error.contains("cannot write `") && error.contains("manifest.json`"), "{error}");
    assert!(said(tch_lens_harvest::Store::open("nowhere://bucket")).contains("`nowhere://bucket` is no store"));
}

/// A disk that is full, as a limit on the size of files: what was committed stays, and the harvest goes on where there is room.
#[test]
#[cfg(unix)]
fn a_full_disk_is_an_error_and_loses_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(60));
    let [full, whole] = ["full", "whole"].map(|name| folder.path().join(name));
    let manifest = plan(options(), &corpus)?;
    for path in [&full, &whole] {
        job(&manifest, path)?;
    }
    let harvest = env!("CARGO_BIN_EXE_harvest");
    // 100 blocks of 512 or 1024 bytes: the manifest's size and more, but not a shard's.
    let script = format!("ulimit -f 100; trap '' XFSZ; exec '{harvest}' run '{}' --threads 1", full.display());
    let limited = Command::new("sh").args(["-c", &script]).output()?;
    let error = String::from_utf8_lossy(&limited.stderr).into_owned();
    println!("{error}");
    assert!(!limited.status.success());
    assert!(error.contains("harvest: cannot write `") && error.contains("File too large"), "{error}");
    let unfinished = files(&full).into_keys().filter(|path| path.display().to_string().contains(".part")).count();
    assert_eq!((unfinished, full.join("shards/000000.json").exists()), (0, false));
    for path in [&full, &whole] {
        assert!(Command::new(harvest).arg("run").arg(path).args(["--threads", "1", "--quiet"]).status()?.success());
    }
    assert_equal(&full, &whole);
    Ok(())
}

#[test]
fn a_damaged_shard_is_found_and_made_again() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(60));
    let [damaged, whole] = ["damaged", "whole"].map(|name| folder.path().join(name));
    let manifest = plan(options(), &corpus)?;
    for path in [&damaged, &whole] {
        let job = job(&manifest, path)?;
        harvest(&job, job.manifest().shards(), |_| ())?;
    }
    let path = damaged.join("activations/000001.parquet");
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes)?;
    fs::remove_file(damaged.join("rows/000002.parquet"))?;
    let job = job(&manifest, &damaged)?;
    // A file of the wrong size or none is seen by the next harvest, a changed byte by whoever reads it.
    let error = said(harvest(&job, [ShardId(2)], |_| ()));
    assert!(error.contains("000002.parquet` of shard 2 is damaged (it is missing): run `harvest verify --repair`"));
    let error = said(job.checked_file(ShardId(1), "activations/000001.parquet"));
    assert!(error.contains("of shard 1 is damaged (its SHA-256 differs)"), "{error}");
    let found = verify(&store(&damaged), true)?;
    let shards: Vec<u32> = found.damaged.iter().map(|(shard, _)| shard.0).collect();
    assert_eq!(shards, [1, 2]);
    harvest(&job, job.manifest().shards(), |_| ())?;
    assert_equal(&damaged, &whole);
    assert!(verify(&store(&damaged), false)?.damaged.is_empty());
    Ok(())
}

#[test]
fn a_number_that_a_type_cannot_hold_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(3));
    let model = HookedTransformer::toy().unwrap();
    // Weights of a thousand times the size.
    let mut embedding = model.w_e().unwrap().shallow_clone();
    let _ = tch_lens::tch::no_grad(|| embedding.f_mul_scalar_(1e7)).unwrap();
    let manifest = PlanOptions::new("toy")
        .point("hook_embed", DType::Fp16)
        .plan(&model, CorpusFormat::Lines, &[corpus.display().to_string()])
        .unwrap();
    let job = Job::new(manifest, model, store(&folder.path().join("harvest"))).unwrap();
    let error = harvest(&job, job.manifest().shards(), |_| ()).unwrap_err();
    assert!(matches!(error, Error::Value { .. }), "{error}");
    assert!(error.to_string().contains("which fp16 cannot hold: store it as bf16 or fp32"), "{error}");
}
