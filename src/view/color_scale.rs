//! [`ColorScale`]: from a value to a colour.

use crate::{Error, Result};

/// From a value to a colour: from pale to strong, or in two colours around a centre.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColorScale {
    /// From `low`, pale, to `high`, strong.
    Sequential {
        /// The palest value.
        low: f64,
        /// The strongest value.
        high: f64,
    },
    /// Red below the centre, blue above it; strongest at a distance of `reach`.
    Diverging {
        /// The value without colour.
        center: f64,
        /// The distance from the centre at which colours are strongest.
        reach: f64,
    },
}

/// A colour: red, green and blue.
pub(super) type Rgb = [u8; 3];

/// Colours at equal distances, in a light and in a dark page.
pub(super) struct Ramp {
    pub(super) light: &'static [Rgb],
    pub(super) dark: &'static [Rgb],
}

/// From pale to strong.
pub(super) const SEQUENTIAL: Ramp = Ramp {
    light: &[[255, 255, 255], [211, 227, 245], [134, 181, 227], [58, 124, 196], [18, 63, 134]],
    dark: &[[22, 24, 29], [26, 52, 88], [38, 97, 160], [84, 158, 228], [207, 230, 255]],
};
/// Red, nothing, blue.
pub(super) const DIVERGING: Ramp = Ramp {
    light: &[[163, 33, 47], [224, 138, 128], [250, 250, 250], [127, 176, 222], [29, 79, 156]],
    dark: &[[255, 155, 140], [158, 54, 54], [22, 24, 29], [38, 97, 170], [140, 196, 255]],
};
/// Of what has no value.
pub(super) const NO_VALUE: Rgb = [190, 190, 190];

impl ColorScale {
    /// The scale of some values: in two colours around zero where some are negative, else from zero up. Values that are no finite
    /// numbers do not count.
    pub fn of(values: impl IntoIterator<Item = f32>) -> Self {
        let (mut low, mut high) = (0.0f64, 0.0f64);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            low = low.min(f64::from(value));
            high = high.max(f64::from(value));
        }
        match low < 0.0 {
            true => ColorScale::Diverging { center: 0.0, reach: high.max(-low) },
            false => ColorScale::Sequential { low: 0.0, high: if high > 0.0 { high } else { 1.0 } },
        }
    }

    /// In two colours around a centre, as far as the values go.
    pub fn around(center: f64, values: impl IntoIterator<Item = f32>) -> Self {
        let distances = values.into_iter().map(|value| (f64::from(value) - center).abs()).filter(|d| d.is_finite());
        let reach = distances.fold(0.0, f64::max);
        ColorScale::Diverging { center, reach: if reach > 0.0 { reach } else { 1.0 } }
    }

    /// The scale, if its numbers can be used.
    pub(super) fn checked(self) -> Result<Self> {
        let (holds, rule) = match self {
            ColorScale::Sequential { low, high } => {
                (low.is_finite() && high.is_finite() && low < high, "`low` must be below `high`, and both finite")
            }
            ColorScale::Diverging { center, reach } => {
                (center.is_finite() && reach.is_finite() && reach > 0.0, "`reach` must be above zero, and both finite")
            }
        };
        match holds {
            true => Ok(self),
            false => Err(Error::option_value("color_scale", format!("{self:?}"), rule)),
        }
    }

    /// The values at the two ends.
    pub(super) fn ends(self) -> (f64, f64) {
        match self {
            ColorScale::Sequential { low, high } => (low, high),
            ColorScale::Diverging { center, reach } => (center - reach, center + reach),
        }
    }

    pub(super) fn ramp(self) -> &'static Ramp {
        match self {
            ColorScale::Sequential { .. } => &SEQUENTIAL,
            ColorScale::Diverging { .. } => &DIVERGING,
        }
    }

    /// A value's colour on white paper.
    pub(super) fn color(self, value: f32) -> Rgb {
        let (low, high) = self.ends();
        match value.is_nan() {
            true => NO_VALUE,
            false => mixed(self.ramp().light, (f64::from(value) - low) / (high - low)),
        }
    }
}

/// The colour at a place from 0 to 1 of a ramp.
fn mixed(stops: &[Rgb], place: f64) -> Rgb {
    let place = place.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let first = (place.floor() as usize).min(stops.len() - 2);
    let part = place - first as f64;
    std::array::from_fn(|i| {
        let (a, b) = (f64::from(stops[first][i]), f64::from(stops[first + 1][i]));
        (a + (b - a) * part).round() as u8
    })
}

/// Whether text on this colour is white.
pub(super) fn is_dark([r, g, b]: Rgb) -> bool {
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b) < 140.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_from_the_values() {
        assert_eq!(ColorScale::of([0.5, 2.0, f32::NAN]), ColorScale::Sequential { low: 0.0, high: 2.0 });
        assert_eq!(ColorScale::of([-3.0, 2.0]), ColorScale::Diverging { center: 0.0, reach: 3.0 });
        assert_eq!(ColorScale::of([]), ColorScale::Sequential { low: 0.0, high: 1.0 });
        assert_eq!(ColorScale::around(1.0, [0.0, 1.5]), ColorScale::Diverging { center: 1.0, reach: 1.0 });
    }

    #[test]
    fn the_ends_and_the_middle_are_the_ramps() {
        let scale = ColorScale::Diverging { center: 1.0, reach: 2.0 };
        for (value, stop) in [(-1.0, 0), (-9.0, 0), (1.0, 2), (3.0, 4)] {
            assert_eq!(scale.color(value), DIVERGING.light[stop]);
        }
        assert_eq!(scale.color(f32::NAN), NO_VALUE);
        assert!(is_dark(DIVERGING.light[4]) && !is_dark(DIVERGING.light[2]));
    }

    #[test]
    fn a_scale_without_extent_is_an_error() {
        let scales =
            [ColorScale::Sequential { low: 1.0, high: 1.0 }, ColorScale::Diverging { center: f64::NAN, reach: 1.0 }];
        for scale in scales {
            assert!(scale.checked().unwrap_err().to_string().starts_with("`color_scale` is "));
        }
    }
}
