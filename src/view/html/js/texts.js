// Tokens and tables, and pictures that came as SVG.

// The tokens behind a place, with their values.
function listed(top, ids, values, index) {
  const lines = [];
  for (let i = index * top.k; i < (index + 1) * top.k; i++)
    if (ids[i] < top.tokens.length) lines.push([`“${top.tokens[ids[i]]}”`, shown(values[i])]);
  return lines;
}

function drawTokens(figure, text, host) {
  const tip = new Tip(host), { tokens, series, top } = figure;
  const values = series.map((one) => arrayOf(text, one.values));
  const ids = top && arrayOf(text, top.ids), numbers = top && arrayOf(text, top.values);
  let chosen = 0;
  const bar = legend(series[0].scale, series[0].name);
  if (series.length > 1) {
    const names = series.map((one) => one.name);
    host.append(
      chooser("Colour by", names, (next) => {
        chosen = next;
        bar.element.replaceWith((bar.now = legend(series[next].scale, series[next].name)).element);
        bar.element = bar.now.element;
        paint();
      }),
    );
  }
  const spans = tokens.map((token) => make("span", { class: "token", textContent: token || " " }));
  const strip = make("div", { class: "strip", role: "group", "aria-label": "Tokens" });
  spans.forEach((span, i) => strip.append(span, ...(tokens[i].includes("↵") ? [make("br")] : [])));
  host.append(strip, bar.element);
  const show = (index) => {
    const lines = [`“${tokens[index]}” (${index})`];
    series.forEach((one, i) => lines.push([one.name, shown(values[i][index])]));
    if (top) {
      const list = listed(top, ids, numbers, index);
      if (list.length) lines.push(`likeliest, ${top.name}:`, ...list);
    }
    tip.show(lines, spans[index].getBoundingClientRect());
  };
  rove(strip, spans, { enter: show, leave: () => tip.hide() });
  const paint = () =>
    spans.forEach((span, index) => {
      const value = values[chosen][index];
      const rgb = rgbOf(series[chosen].scale, value);
      span.style.backgroundColor = Number.isNaN(value) ? "" : css(rgb);
      span.style.color = Number.isNaN(value) ? "" : inkOn(rgb);
    });
  paint();
  return () => {
    paint();
    (bar.now || bar).draw();
  };
}

function drawTable(figure, text, host) {
  const tip = new Tip(host), { rows, columns, cells, top } = figure, m = columns.length;
  const values = figure.values && arrayOf(text, figure.values);
  const ids = top && arrayOf(text, top.ids), numbers = top && arrayOf(text, top.values);
  const head = make("tr", {}, make("th", { scope: "col", textContent: figure.corner }));
  columns.forEach((column) => head.append(make("th", { scope: "col", textContent: column.trim() })));
  const body = make("tbody"), items = [];
  rows.forEach((row, r) => {
    const line = make("tr", {}, make("th", { scope: "row", textContent: row }));
    for (let c = 0; c < m; c++) {
      const cell = make("td", { textContent: cells[r * m + c] });
      items.push(cell);
      line.append(cell);
    }
    body.append(line);
  });
  const table = make("table", {}, make("thead", {}, head), body);
  host.append(make("div", { class: "scroll table" }, table));
  const colored = values && values.some((value) => !Number.isNaN(value));
  const bar = colored && legend(figure.scale, figure.name);
  if (bar) host.append(bar.element);
  const show = (index) => {
    const lines = [`${rows[Math.floor(index / m)]} · ${columns[index % m].trim()}`];
    if (cells[index]) lines.push(top ? `“${cells[index]}”` : cells[index]);
    if (top) lines.push(top.name + ":", ...listed(top, ids, numbers, index));
    else if (values && !Number.isNaN(values[index])) lines.push([figure.name, shown(values[index])]);
    tip.show(lines, items[index].getBoundingClientRect());
  };
  rove(body, items, { columns: () => m, enter: show, leave: () => tip.hide() });
  const paint = () => {
    if (!colored) return;
    items.forEach((item, index) => {
      if (Number.isNaN(values[index])) return;
      const rgb = rgbOf(figure.scale, values[index]);
      item.style.backgroundColor = css(rgb);
      item.style.color = inkOn(rgb);
    });
    bar.draw();
  };
  paint();
  return paint;
}

function drawSvg(figure, text, host) {
  const svg = host.querySelector("svg");
  if (!svg) return () => {};
  const tip = new Tip(host), marks = [...svg.querySelectorAll(".mark")];
  // Edges that do not touch a node step back while it is looked at.
  const focus = (node) =>
    marks.forEach((mark) => {
      const { from, to } = mark.dataset;
      mark.classList.toggle("back", node !== undefined && from !== undefined && from !== node && to !== node);
    });
  rove(svg, marks, {
    columns: () => 1,
    enter: (index) => {
      tip.show([marks[index].dataset.tip], marks[index].getBoundingClientRect());
      focus(marks[index].dataset.node);
    },
    leave: () => {
      tip.hide();
      focus(undefined);
    },
  });
  return () => {};
}
