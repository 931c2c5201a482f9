//! How estimates by gradients are drawn.

use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::heat_map::{HeatMap, HeatMapAxis};
use super::results::floats;
use super::token_strip::TokenStrip;
use super::visible::number;
use crate::gradient::{AttributionPatching, IntegratedGradients};
use crate::{Error, Result};

/// No model has as many heads in a layer; neurons are more.
const MOST_HEADS: i64 = 256;

impl Draw for IntegratedGradients {
    /// The share of each token: tokens in colours for one row of the batch, else rows and positions.
    fn figure(&self) -> Result<Figure> {
        let shares = self.by_position()?; // [batch, pos]
        let caption = format!(
            "How much each position adds to the metric, from the baseline on. The shares sum to the difference of the metrics but for {}.",
            number(self.completeness_error()?.f_abs()?.f_max()?.f_double_value(&[])?)
        );
        let title = format!("Integrated gradients at {}", self.point());
        let figure = match shares.size()[0] {
            1 => {
                let numbers = || (0..shares.size()[1]).map(|position| format!("position {position}")).collect();
                let tokens = self.to_str_tokens(0).unwrap_or_else(|_| numbers());
                Figure::new(title, TokenStrip::new(tokens, "share", floats(&shares)?)?)
            }
            rows => {
                let columns: Vec<String> = (0..shares.size()[1]).map(|position| position.to_string()).collect();
                let rows = HeatMapAxis::new("batch", (0..rows).map(|row| format!("row {row}")));
                let map = HeatMap::from_tensor(rows, HeatMapAxis::new("position", columns), &shares)?;
                Figure::new(title, map.value_name("share"))
            }
        };
        Ok(figure.with_caption(caption))
    }
}

impl AttributionPatching {
    /// The estimates of a site in all layers as a map: layer × position of streams and of what sublayers add, a panel for each layer of
    /// head × position, and a panel for each head of query × key.
    ///
    /// ```
    /// use tch_lens::gradient::AttributionPatchingOptions;
    /// use tch_lens::{HookedTransformer, Metric};
    /// let model = HookedTransformer::toy()?;
    /// let (clean, corrupted) = ("When Mary and John went to the shop, John gave a bag to", "When Mary and John went to the shop, Mary gave a bag to");
    /// let options = AttributionPatchingOptions::new().points(["resid_pre"]);
    /// let estimates = model.attribution_patching(corrupted, clean, &Metric::logit_diff(" Mary", " John"), options)?;
    /// println!("{}", estimates.map("resid_pre")?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`AttributionPatching::by_layer`]; [`Error::WrongInput`] for neurons, which are too many for a picture.
    pub fn map(&self, site: &str) -> Result<Figure> {
        let estimates = self.by_layer(site)?; // [layer, pos], [layer, pos, head] or [layer, head, query, key]
        let size = estimates.size();
        let numbered = |name: &str, n: i64| HeatMapAxis::new(name, (0..n).map(|i| i.to_string()));
        // Of several rows, whose estimates are summed, positions are numbers.
        let positions = |name: &str, n: i64| match self.to_str_tokens(0) {
            Ok(tokens) if self.n_rows() == 1 => HeatMapAxis::new(name, tokens),
            _ => numbered(name, n),
        };
        let is_pattern = size.len() == 4;
        // Heads are few, neurons are not.
        let is_neurons = size.len() == 3 && size[2] > MOST_HEADS;
        let map = match size.as_slice() {
            _ if is_neurons => {
                return Err(Error::wrong_input(format!(
                    "`{site}` has too many neurons for a picture: look at `by_layer`"
                )));
            }
            [layers, n] => HeatMap::with_panels(
                HeatMapAxis::new("", [""]),
                numbered("layer", *layers),
                positions("position", *n),
                floats(&estimates)?,
            )?,
            [layers, n, heads] => {
                let by_head = estimates.f_transpose(1, 2)?; // [layer, head, pos]
                let panels = HeatMapAxis::new("layer", (0..*layers).map(|layer| format!("layer {layer}")));
                HeatMap::with_panels(panels, numbered("head", *heads), positions("position", *n), floats(&by_head)?)?
            }
            [layers, heads, queries, keys] => {
                let names = (0..*layers).flat_map(|layer| (0..*heads).map(move |head| format!("L{layer}H{head}")));
                HeatMap::with_panels(
                    HeatMapAxis::new("head", names),
                    positions("query", *queries),
                    positions("key", *keys),
                    floats(&estimates)?,
                )?
            }
            _ => return Err(Error::wrong_input(format!("the estimates of `{site}` have no picture"))),
        };
        let values = floats(&estimates)?;
        let map = map.value_name("estimate").color_scale(ColorScale::around(0.0, values))?;
        let what = if is_pattern { "each entry of a pattern" } else { "each activation" };
        Ok(Figure::new(format!("Attribution patching of {site}"), map).with_caption(format!(
            "By how much the metric would change if {what} were that of the other run, to first order: from {} to {} if all were.",
            number(self.base_metric()),
            number(self.source_metric())
        )))
    }
}
