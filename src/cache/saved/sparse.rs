//! Sparse rows in the file of a cache: three tensors, whose names are that of the activation and what they are.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::format::Place;
use crate::run::FileSink;
use crate::sae::SparseFeatures;
use crate::Result;

/// Where each row begins, and where the last one ends; which features are active; their activations.
const PARTS: [&str; 3] = ["offsets", "features", "values"];

/// The names of the tensors of an activation.
pub(super) fn names(activation: &str) -> [String; 3] {
    PARTS.map(|part| format!("{activation}.{part}"))
}

pub(super) fn write(sink: &mut FileSink, activation: &str, rows: &SparseFeatures) -> Result<()> {
    let tensors = [rows.offsets(), rows.features(), rows.values()];
    names(activation).into_iter().zip(tensors).try_for_each(|(name, tensor)| sink.put(name, tensor))
}

/// The tensors of an activation whose rows are sparse.
#[derive(Debug, Default)]
pub(super) struct Parts([Option<Place>; 3]);

/// Takes the tensors of sparse rows out of those of a file: by the name of the activation.
pub(super) fn take(entries: &mut Vec<(String, Place)>) -> BTreeMap<String, Parts> {
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    entries.retain(|(name, place)| {
        let part =
            PARTS.iter().zip(0..).find_map(|(part, nth)| Some((name.strip_suffix(part)?.strip_suffix('.')?, nth)));
        let Some((activation, nth)) = part else { return true };
        let parts = found.entry(activation.into()).or_default();
        if let Some(slot) = parts.0.get_mut(nth) {
            *slot = Some(place.clone());
        }
        false
    });
    found
}

impl Parts {
    /// Where the first of them begins.
    pub(super) fn start(&self) -> usize {
        self.0.iter().flatten().map(|place| place.start).min().unwrap_or(0)
    }

    /// The rows, of an activation of this shape and kind; or what is wrong with them.
    pub(super) fn rows(
        &self,
        shape: &[i64],
        kind: Kind,
        tensor: impl Fn(&Place) -> Result<Tensor>,
    ) -> Result<std::result::Result<SparseFeatures, String>> {
        let [Some(offsets), Some(features), Some(values)] = &self.0 else {
            return Ok(Err(format!("its sparse rows are not all of {PARTS:?}")));
        };
        let [offsets, features, values] = [tensor(offsets)?, tensor(features)?, tensor(values)?];
        let Some((d_sae, leading)) = shape.split_last() else {
            return Ok(Err("its sparse rows have no dimension of features".into()));
        };
        let found = [offsets.f_kind()?, features.f_kind()?, values.f_kind()?];
        if found != [Kind::Int64, Kind::Int64, kind] {
            return Ok(Err(format!("its sparse rows are of kinds {found:?}, expected int64 twice, and {kind:?}")));
        }
        let (rows, active) = (leading.iter().product::<i64>(), values.numel() as i64);
        let sizes = [offsets.size(), features.size(), values.size()];
        if sizes != [vec![rows + 1], vec![active], vec![active]] {
            return Ok(Err(format!("its sparse rows are of sizes {sizes:?}, expected those of {rows} rows")));
        }
        let bounds = [offsets.f_narrow(0, 0, 1)?, offsets.f_narrow(0, rows, 1)?];
        let ends = bounds.iter().map(|end| Ok(i64::try_from(end)?)).collect::<Result<Vec<_>>>()?;
        let counts = offsets.f_narrow(0, 1, rows)?.f_sub(&offsets.f_narrow(0, 0, rows)?)?;
        let rises = rows == 0 || i64::try_from(counts.f_min()?)? >= 0;
        if ends != [0, active] || !rises {
            return Ok(Err(format!("the offsets of its sparse rows do not rise from 0 to {active}")));
        }
        if active > 0 {
            let (low, high) = (i64::try_from(features.f_min()?)?, i64::try_from(features.f_max()?)?);
            if low < 0 || high >= *d_sae {
                return Ok(Err(format!("its sparse rows have features {low} to {high}, but there are {d_sae}")));
            }
        }
        Ok(Ok(SparseFeatures::new(leading.to_vec(), *d_sae, [offsets, features, values])))
    }
}
