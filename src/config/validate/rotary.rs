//! Rotations of queries and keys.

use super::{between, size, MAX_SIZE, STRETCH};
use crate::config::{RopeScaling, Rotary};
use crate::{Error, Result};

pub(super) fn validate_rotary(place: &str, rotary: &Rotary, d_head: usize) -> Result<()> {
    if let Some(pairs) = rotary.pairs.filter(|pairs| *pairs > rotary.dim / 2) {
        let why = format!("there are {} pairs", rotary.dim / 2);
        return Err(Error::field(&format!("{place}.pairs"), pairs, &why));
    }
    let dim = format!("{place}.dim");
    if rotary.dim == 0 || !rotary.dim.is_multiple_of(2) || rotary.dim > d_head {
        return Err(Error::field(&dim, rotary.dim, &format!("it must be even, from 2 to d_head, {d_head}")));
    }
    // At exactly 1 all pairs turn alike, and YaRN divides by the logarithm.
    between(&format!("{place}.base"), rotary.base, [1.0 + 1e-6, 1e30])?;
    let field = |name: &str| format!("{place}.scaling.{name}");
    let stretch = |name: &str, value: f64| between(&field(name), value, STRETCH);
    let trained = |value: usize| size(&field("original_max_position_embeddings"), value, MAX_SIZE);
    let ordered = |name: &str, higher: f64, lower_name: &str, lower: f64| match higher > lower {
        true => Ok(()),
        false => Err(Error::field(&field(name), higher, &format!("it must be more than {lower_name}, {lower}"))),
    };
    match &rotary.scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => stretch("factor", *factor),
        RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
            if rotary.dim == 2 {
                return Err(Error::field(&dim, 2, "a dynamic base needs at least 4: it grows by dim / (dim - 2)"));
            }
            stretch("factor", *factor)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            stretch("factor", *factor)?;
            stretch("low_freq_factor", *low_freq_factor)?;
            stretch("high_freq_factor", *high_freq_factor)?;
            ordered("high_freq_factor", *high_freq_factor, "low_freq_factor", *low_freq_factor)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate: _,
            original_max_position_embeddings,
        } => {
            stretch("factor", *factor)?;
            stretch("attention_factor", *attention_factor)?;
            stretch("beta_fast", *beta_fast)?;
            stretch("beta_slow", *beta_slow)?;
            ordered("beta_fast", *beta_fast, "beta_slow", *beta_slow)?;
            trained(*original_max_position_embeddings)
        }
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            for (name, list) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                if list.len() != rotary.dim / 2 {
                    let why = format!("it must have one entry for each of the {} pairs", rotary.dim / 2);
                    return Err(Error::field(&field(name), format!("a list of {}", list.len()), &why));
                }
                list.iter().try_for_each(|divisor| stretch(name, *divisor))?;
            }
            stretch("attention_factor", *attention_factor)?;
            trained(*original_max_position_embeddings)
        }
    }
}
