//! Opens the files of caches.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use super::description::{Description, ModelIdentity, VERSION};
use super::{sparse, ActivationCache};
use crate::format::{safetensors, Dtype, Place};
use crate::hook::{Extent, HookName, HookPoint, PointSet, Site};
use crate::model::Transformer;
use crate::run::sink::{FIELD, TOKENS};
use crate::run::Entry;
use crate::tensor::span::Span;
use crate::text::input::Tokens;
use crate::text::tokenizer::Tokenizer;
use crate::unchecked::mapped::{kind, Access, FileBytes};
use crate::{Error, Result};

impl ActivationCache {
    /// Opens a file that [`ActivationCache::save`] or a [`FileSink`](crate::FileSink) wrote, without its model.
    ///
    /// The file is mapped into memory: an activation is read when it is used, and the system may drop it again. It must not be changed in
    /// place while the cache is used. Activations, tokens, positions and slices are there, and every analysis that needs no weights; the
    /// others are [`Error::NoWeights`]. [`HookedTransformer::open_cache`](crate::HookedTransformer::open_cache) opens it with its model.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Malformed`] if it cannot be read; [`Error::SavedCache`] if it is no cache, or does not hold what it says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = SavedFile::read(path)?;
        let identity = &file.description.model;
        let kind = Dtype::from_safetensors_name(&identity.kind).map(kind).filter(|kind| KINDS.contains(kind));
        let kind = kind.ok_or_else(|| refused(path, format!("its weights are `{}`", identity.kind)))?;
        let model = Transformer::without_weights(identity.config.clone(), kind);
        file.cache(path, model, None)
    }

    /// Opens a file with the model that ran.
    pub(crate) fn open_with(path: &Path, model: &Transformer, tokenizer: Option<Tokenizer>) -> Result<Self> {
        let file = SavedFile::read(path)?;
        if let Some(differs) = file.description.model.difference(&ModelIdentity::of(model)?) {
            return Err(Error::CacheOfOtherModel { path: path.into(), differs });
        }
        let cache = file.cache(path, model.clone(), tokenizer)?;
        match model.device() {
            Device::Cpu => Ok(cache),
            device => cache.to(device),
        }
    }
}

/// The kinds that weights may have.
const KINDS: [Kind; 4] = [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16];

/// A file that holds a cache.
struct SavedFile {
    description: Description,
    entries: Vec<(String, Place)>,
    /// All bytes of the file, mapped.
    bytes: Tensor,
}

impl SavedFile {
    fn read(path: &Path) -> Result<Self> {
        let file = FileBytes::open(path, Access::Map)?;
        let malformed = |error| Error::malformed(path, error);
        let text = safetensors::metadata(file.as_slice(), FIELD).map_err(malformed)?;
        let text = text.ok_or_else(|| refused(path, "its metadata does not describe a run"))?;
        let description: Description = serde_json::from_str(&text).map_err(|error| refused(path, error))?;
        if description.version != VERSION {
            let why = format!("it is of version {}, and this crate reads version {VERSION}", description.version);
            return Err(refused(path, why));
        }
        description.model.config.validate().map_err(|error| refused(path, error))?;
        let entries = safetensors::entries(file.as_slice()).map_err(malformed)?;
        let len = file.as_slice().len() as i64;
        let name = path.to_str().ok_or_else(|| {
            Error::unsupported(format!("{} is not UTF-8: give the file another name", path.display()))
        })?;
        // libtorch maps it again, for as long as a tensor of it is there. Changes of these stay in memory.
        let bytes = Tensor::f_from_file(name, false, len, (Kind::Uint8, Device::Cpu))?;
        Ok(SavedFile { description, entries, bytes })
    }

    fn cache(self, path: &Path, model: Transformer, tokenizer: Option<Tokenizer>) -> Result<ActivationCache> {
        let SavedFile { description, mut entries, bytes } = self;
        let Description { changed, rows, positions, has_batch_dim, .. } = description;
        // The model's own also knows what dictionaries are attached.
        let config = &**model.shared_config();
        let mut named = |name: &str| entries.iter().position(|(found, _)| found == name).map(|at| entries.remove(at));
        let [ids, mask, types] = TOKENS.map(&mut named);
        let Some((_, ids)) = ids else { return Err(refused(path, "it has no `tokens`")) };
        let optional = |found: Option<(_, Place)>| found.map(|(_, place)| tensor(&bytes, &place)).transpose();
        let (ids, mask, types) = (tensor(&bytes, &ids)?, optional(mask)?, optional(types)?);
        let size = ids.size();
        let fits = size.len() == 2 && ids.f_kind()? == Kind::Int64;
        let beside = [(&mask, Kind::Bool), (&types, Kind::Int64)];
        let is_like = |(found, kind): (&Option<Tensor>, Kind)| match found {
            Some(found) => Ok::<_, Error>(found.size() == size && found.f_kind()? == kind),
            None => Ok(true),
        };
        if !fits || beside.into_iter().map(is_like).collect::<Result<Vec<_>>>()?.contains(&false) {
            return Err(refused(path, "its `tokens`, or what stands beside them, are not [batch, pos]"));
        }
        let (batch, pos) = (size[0] as usize, size[1] as usize);
        let Some(kept) = positions.checked(batch, pos) else {
            return Err(refused(path, "its positions are not those of its tokens"));
        };
        let rows = rows.checked(0..i64::MAX, 1).filter(|rows| rows.len() == batch && (has_batch_dim || batch == 1));
        let Some(rows) = rows else { return Err(refused(path, "its rows are not those of its tokens")) };
        let mut points = PointSet::default();
        for name in &changed {
            points.insert(name.as_str().resolve(config).map_err(|error| refused(path, error))?);
        }
        let sparse_rows = sparse::take(&mut entries);
        let span = Span { past: kept.past() as usize, new: kept.all().len() };
        let mut found = HashSet::new();
        let mut activations = Vec::with_capacity(entries.len());
        for (name, place) in &entries {
            let point = name.resolve(config).map_err(|error| refused(path, error))?;
            let Some(columns) = kept.at(point) else {
                return Err(refused(path, format!("it holds `{name}`, of which its run kept no position")));
            };
            let expected = expected_shape(point, config, batch, span, (columns.len() as i64, has_batch_dim));
            let heads = config.heads(point.layer().unwrap_or(0)).key_value as i64;
            let axis = 1 + usize::from(has_batch_dim);
            let matches = |shape: &[i64]| {
                shape.len() == expected.len()
                    && shape.iter().zip(&expected).all(|(found, expected)| expected.is_none_or(|n| n == *found))
            };
            // Where heads read different streams, each goes through the norm.
            let apart = matches!(point.site(), Site::Ln1Scale | Site::Ln1Normalized)
                && place.shape.get(axis) == Some(&heads)
                && matches(&[&place.shape[..axis], &place.shape[axis + 1..]].concat());
            if !(matches(&place.shape) || apart) || kind(place.dtype) != point.kind(model.kind()) {
                let (dtype, shape) = (place.dtype.safetensors_name(), &place.shape);
                return Err(refused(path, format!("`{name}` is {dtype} {shape:?}, which the model's is not")));
            }
            if !found.insert(point) {
                return Err(refused(path, format!("it holds `{point}` twice")));
            }
            activations.push((place.start, point, Entry::from(tensor(&bytes, place)?)));
        }
        for (name, parts) in &sparse_rows {
            let point = name.resolve(config).map_err(|error| refused(path, error))?;
            let Some(columns) = kept.at(point).filter(|_| point.site() == Site::SaeActsPost) else {
                return Err(refused(path, format!("it holds sparse rows of `{name}`, which has none in its run")));
            };
            let shape = expected_shape(point, config, batch, span, (columns.len() as i64, has_batch_dim));
            let shape = shape.into_iter().collect::<Option<Vec<i64>>>().unwrap_or_default();
            let rows = parts.rows(&shape, point.kind(model.kind()), |place| tensor(&bytes, place))?;
            let rows = rows.map_err(|why| refused(path, format!("`{name}`: {why}")))?;
            if !found.insert(point) {
                return Err(refused(path, format!("it holds `{point}` twice")));
            }
            activations.push((parts.start(), point, Entry::active(rows)));
        }
        activations.sort_by_key(|(start, point, _)| (*start, *point));
        let activations: IndexMap<_, _> = activations.into_iter().map(|(_, point, entry)| (point, entry)).collect();
        Ok(ActivationCache {
            entries: Arc::new(activations),
            changed: Arc::new(points),
            run: ActivationCache::next_run(),
            rows,
            model,
            tokenizer,
            tokens: Tokens { ids, mask, types },
            kept,
            has_batch_dim,
        })
    }
}

/// The size of each dimension, of an entry of so many columns that may have lost its batch dimension; `None` for rows of experts, which
/// depend on the tokens, and for positions of an encoder.
fn expected_shape(
    point: HookPoint,
    config: &crate::Config,
    batch: usize,
    span: Span,
    (columns, has_batch_dim): (i64, bool),
) -> Vec<Option<i64>> {
    let extents = point.extents(config).iter();
    let sizes = extents.zip(point.shape(config, batch, span));
    let mut expected: Vec<Option<i64>> =
        sizes.map(|(extent, n)| (!matches!(extent, Extent::Row | Extent::EncoderPos)).then_some(n)).collect();
    if let Some(axis) = point.axes().position {
        expected[axis] = Some(columns);
    }
    if let (Some(axis), false) = (point.axes().batch, has_batch_dim) {
        expected.remove(axis);
    }
    expected
}

/// A view of the file's bytes. One that does not begin at a multiple of its width is copied.
fn tensor(bytes: &Tensor, place: &Place) -> Result<Tensor> {
    let Place { start, dtype, shape, .. } = place;
    let kind = kind(*dtype);
    let range = place.bytes().ok_or(Error::Internal("a tensor of a file has no length"))?;
    if range.is_empty() {
        return Ok(Tensor::f_empty(shape, (kind, Device::Cpu))?);
    }
    let part = bytes.f_narrow(0, *start as i64, range.len() as i64)?;
    let part = if start.is_multiple_of(dtype.width()) { part } else { part.f_alias_copy()? };
    Ok(part.f_view_dtype(kind)?.f_view(shape.as_slice())?)
}

fn refused(path: &Path, why: impl ToString) -> Error {
    Error::SavedCache { path: path.into(), why: why.to_string() }
}
