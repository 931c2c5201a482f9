//! [`Job`]: a manifest with the model, the corpus and the store that it names, ready to harvest.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tch_lens::hook::HookName as _;
use tch_lens::tch::{Device, Kind};
use tch_lens::{Dictionary, DictionaryOptions, HookPoint, HookedTransformer};

use crate::corpus::Corpus;
use crate::manifest::{hex, sha256, DType, Keep, Manifest, PointSelection};
use crate::store::{Put, Store};
use crate::{Error, Result, ShardId, ShardMetadata};

/// Where the manifest lies in a store.
pub const MANIFEST: &str = "manifest.json";

/// A harvest that can run: a manifest, the model that it names, and where its shards go. A clone shares the model.
#[derive(Clone, Debug)]
pub struct Job {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifest: Manifest,
    hash: String,
    model: HookedTransformer,
    corpus: Corpus,
    store: Store,
    points: Vec<KeptPoint>,
}

/// A selection of the manifest, in the model.
#[derive(Clone, Debug)]
pub struct KeptPoint {
    /// The hook point.
    pub point: HookPoint,
    /// The name of its column, or of its columns before `.index` and `.value`.
    pub column: String,
    /// The type of the stored numbers.
    pub dtype: DType,
    /// What is kept.
    pub keep: Keep,
    /// The numbers of one activation of the point.
    pub read: usize,
    /// The channels of the column: those numbers, or the features of the dictionary.
    pub width: usize,
    pub(crate) dictionary: Option<Dictionary>,
}

impl KeptPoint {
    /// The name of its statistics: that of the column, with `.top_k` or `.features` behind it where its entries are stored one by one.
    pub fn statistics_name(&self) -> String {
        match self.keep {
            Keep::Whole => self.column.clone(),
            Keep::TopK { .. } => format!("{}.top_k", self.column),
            Keep::Dictionary { .. } => format!("{}.features", self.column),
        }
    }
}

impl Job {
    /// The harvest that was planned into a store: reads its manifest, and loads the model that it names on a device.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`], [`Error::Malformed`], [`Error::OtherModel`] for weights that changed since, and those of loading a model.
    pub fn open(store: &Store, device: Device) -> Result<Self> {
        let manifest = Job::manifest_of(store)?;
        let identity = &manifest.model;
        let model = load_model(&identity.source, identity.dtype, identity.processed, device)?;
        Job::new(manifest, model, store.clone())
    }

    /// The manifest that lies in a store.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`], [`Error::Malformed`].
    pub fn manifest_of(store: &Store) -> Result<Manifest> {
        match store.get(MANIFEST)? {
            Some(json) => Manifest::from_json(&json, &store.address_of(MANIFEST)),
            None => Err(Error::NoManifest { store: store.address().into() }),
        }
    }

    /// A harvest of a model that is loaded already. Writes the manifest to the store if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::OtherModel`] for a model that is not the manifest's; [`Error::OtherManifest`] for a store that has another harvest;
    /// [`Error::CorpusChanged`]; those of the points.
    pub fn new(manifest: Manifest, model: HookedTransformer, store: Store) -> Result<Self> {
        manifest.model.check(&model)?;
        let tokenizer = if manifest.corpus.format.is_tokenised() { None } else { Some(tokenizer_hash(&model)?) };
        if let (Some(expected), Some(found)) = (&manifest.tokenizer, tokenizer)
            && *expected != found
        {
            return Err(Error::OtherModel {
                what: "tokenizer's hash",
                expected: expected.clone(),
                found,
                source_name: manifest.model.source.clone(),
            });
        }
        let hash = manifest.hash()?;
        let points = resolve(&manifest.points, &model)?;
        let corpus = Corpus::of(&manifest.corpus)?;
        if store.put_new(MANIFEST, manifest.to_json()?.into())? == Put::Exists {
            let found = Job::manifest_of(&store)?.hash()?;
            if found != hash {
                return Err(Error::OtherManifest { store: store.address().into(), expected: hash, found });
            }
        }
        store.remove_leftovers(MANIFEST);
        Ok(Job { inner: Arc::new(Inner { manifest, hash, model, corpus, store, points }) })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// [`Manifest::hash`].
    pub fn manifest_hash(&self) -> &str {
        &self.inner.hash
    }

    /// The model.
    pub fn model(&self) -> &HookedTransformer {
        &self.inner.model
    }

    /// Where shards go.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The points that are kept, in the manifest's order.
    pub fn points(&self) -> &[KeptPoint] {
        &self.inner.points
    }

    pub(crate) fn corpus(&self) -> &Corpus {
        &self.inner.corpus
    }

    /// The token that fills up batches; no position of it is kept.
    pub(crate) fn pad_id(&self) -> i64 {
        self.model().tokenizer().map_or(0, |tokenizer| tokenizer.pad_id())
    }

    /// The metadata of a shard, if it is committed.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for metadata that cannot be read; [`Error::OtherManifest`] for that of another harvest.
    pub fn committed(&self, shard: ShardId) -> Result<Option<ShardMetadata>> {
        committed(self.store(), self.manifest_hash(), shard)
    }

    /// That the files of a committed shard have their sizes.
    pub(crate) fn check_sizes(&self, metadata: &ShardMetadata) -> Result<()> {
        metadata.files.iter().try_for_each(|file| {
            let why = match self.store().size(&file.path)? {
                Some(bytes) if bytes == file.bytes => return Ok(()),
                Some(bytes) => format!("it has {bytes} bytes in place of {}", file.bytes),
                None => "it is missing".into(),
            };
            Err(Error::Corrupted { shard: metadata.shard, file: self.store().address_of(&file.path), why })
        })
    }

    /// The bytes of a file of a committed shard.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] for a shard that is not committed; [`Error::Corrupted`] for bytes that are not those that were committed.
    pub fn checked_file(&self, shard: ShardId, path: &str) -> Result<Bytes> {
        let metadata = self.committed(shard)?.ok_or(Error::Missing { shard })?;
        checked_file(self.store(), &metadata, path)
    }
}

/// The metadata of a shard in a store, if it is committed.
pub(crate) fn committed(store: &Store, manifest_hash: &str, shard: ShardId) -> Result<Option<ShardMetadata>> {
    let path = shard.metadata_path();
    let Some(json) = store.get(&path)? else { return Ok(None) };
    let metadata: ShardMetadata = serde_json::from_slice(&json).map_err(|why| Error::Malformed {
        file: store.address_of(&path),
        what: "metadata of a shard",
        why: why.to_string(),
    })?;
    if metadata.manifest != manifest_hash {
        return Err(Error::OtherManifest {
            store: store.address().into(),
            expected: manifest_hash.into(),
            found: metadata.manifest,
        });
    }
    Ok(Some(metadata))
}

/// The bytes of a file of a committed shard, once their hash is checked.
pub(crate) fn checked_file(store: &Store, metadata: &ShardMetadata, path: &str) -> Result<Bytes> {
    let corrupted = |why: String| Error::Corrupted { shard: metadata.shard, file: store.address_of(path), why };
    let record = metadata.files.iter().find(|file| file.path == path).ok_or_else(|| {
        Error::Setting(format!("the harvest in `{}` has no file `{path}`: it was planned without", store.address()))
    })?;
    let bytes = store.get(path)?.ok_or_else(|| corrupted("it is missing".into()))?;
    if bytes.len() as u64 != record.bytes {
        return Err(corrupted(format!("it has {} bytes in place of {}", bytes.len(), record.bytes)));
    }
    match sha256(&bytes) == record.sha256 {
        true => Ok(bytes),
        false => Err(corrupted("its SHA-256 differs".into())),
    }
}

/// Loads a model: `toy`, a folder or, with the feature `hub`, a name on the hub.
///
/// # Errors
///
/// Those of loading.
pub fn load_model(source: &str, dtype: DType, processed: bool, device: Device) -> Result<HookedTransformer> {
    let mut options = tch_lens::LoadOptions::new().kind(dtype.kind()).device(device);
    if !processed {
        options = options.no_processing();
    }
    Ok(match source {
        "toy" => options.toy()?,
        folder_or_name => options.open(folder_or_name)?,
    })
}

/// The SHA-256 of a model's tokenizer.
pub(crate) fn tokenizer_hash(model: &HookedTransformer) -> Result<String> {
    Ok(sha256(model.tokenizer()?.json()?.as_bytes()))
}

/// The points of a manifest in its model.
pub(crate) fn resolve(selections: &[PointSelection], model: &HookedTransformer) -> Result<Vec<KeptPoint>> {
    let wrong = |what: String| Error::Setting(what);
    if selections.is_empty() {
        return Err(wrong("a harvest keeps at least one point: name one with `--point`".into()));
    }
    let mut kept: Vec<KeptPoint> = Vec::new();
    for selection in selections {
        let PointSelection { point: name, dtype, keep } = selection;
        let point = name.as_str().resolve(model.config())?;
        let axes = point.axes();
        if (axes.batch, axes.position) != (Some(0), Some(1)) {
            return Err(wrong(format!(
                "`{point}` has no activation for each token, so it cannot be harvested: choose another point"
            )));
        }
        let read = point.shape(model.config(), 1, 1)[2..].iter().product::<i64>().max(0) as usize;
        let dictionary = match keep {
            Keep::Dictionary { source, hash } => {
                let dictionary = load_dictionary(source, point, model)?;
                let found = dictionary_hash(&dictionary)?;
                if found != *hash {
                    return Err(wrong(format!("the dictionary `{source}` is not the manifest's (its hash is {found}, not {hash}): restore it, or plan another harvest")));
                }
                Some(dictionary)
            }
            Keep::TopK { k } if !(1..=read).contains(k) => {
                return Err(wrong(format!(
                    "`{point}` has {read} entries, so the number of kept ones is from 1 to {read}, and not {k}"
                )));
            }
            _ => None,
        };
        if *keep != Keep::Whole && *dtype == DType::Bf16 {
            return Err(wrong(format!(
                "the entries of `{point}` are stored one by one, which bf16 has no column for: choose fp32 or fp16"
            )));
        }
        let column = point.to_string();
        if kept.iter().any(|other| other.column == column && (other.keep == Keep::Whole) == (*keep == Keep::Whole)) {
            return Err(wrong(format!("`{point}` is chosen twice in the same form: leave one out")));
        }
        let width = dictionary.as_ref().map_or(read, Dictionary::d_sae);
        kept.push(KeptPoint { point, column, dtype: *dtype, keep: keep.clone(), read, width, dictionary });
    }
    Ok(kept)
}

/// A dictionary that reads a point, on the model's device.
pub(crate) fn load_dictionary(source: &str, point: HookPoint, model: &HookedTransformer) -> Result<Dictionary> {
    let dictionary = DictionaryOptions::new().kind(Kind::Float).device(model.device()).open(source)?;
    match dictionary.hook_in() == point {
        true => Ok(dictionary),
        false => Err(Error::Setting(format!(
            "the dictionary `{source}` reads `{}`, and not `{point}`: choose its point",
            dictionary.hook_in()
        ))),
    }
}

/// What tells dictionaries apart, as encoders: the SHA-256 of all that encoding uses.
pub(crate) fn dictionary_hash(dictionary: &Dictionary) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?}", dictionary.config()));
    let mut tensors = vec![dictionary.w_enc(), dictionary.b_enc(), dictionary.b_dec()];
    tensors.extend(dictionary.threshold());
    tensors.extend(dictionary.gate().into_iter().flatten());
    for tensor in tensors {
        let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut bytes = vec![0; 4 * tensor.numel()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        hasher.update((tensor.numel() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hex(&hasher.finalize()))
}
