// Values as colours in rows and columns, drawn on a canvas.

const FONT = '11px "DejaVu Sans Mono", Menlo, Consolas, monospace';

// Cells as an image, one pixel each.
function imageOf(values, rows, columns, scale) {
  const image = new ImageData(columns, rows), data = image.data;
  // Colours of 256 steps, so that a cell is a look-up.
  const steps = Array.from({ length: 256 }, (_, i) => rgbOf({ ...scale, root: false }, scale.low + ((scale.high - scale.low) * i) / 255));
  const none = rgbOf(scale, NaN);
  for (let i = 0; i < rows * columns; i++) {
    const value = values[i];
    const rgb = Number.isNaN(value) ? none : steps[Math.round(255 * placeOf(scale, value))];
    data[4 * i] = rgb[0];
    data[4 * i + 1] = rgb[1];
    data[4 * i + 2] = rgb[2];
    data[4 * i + 3] = 255;
  }
  const canvas = make("canvas", { width: columns, height: rows });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A matrix with labels. `lines(row, column)` says what is shown of a cell; `moved(row)` hears which row is looked at.
class Matrix {
  constructor(host, tip, { rows, columns, label, lines, moved = () => {}, zeros = true }) {
    Object.assign(this, { tip, rows, columns, lines, moved, zeros, row: 0, column: 0 });
    this.canvas = make("canvas", { class: "matrix", tabIndex: 0, role: "img", "aria-label": label });
    this.cursor = make("div", { class: "cursor", hidden: true });
    this.box = make("div", { class: "matrix-box" }, this.canvas, this.cursor);
    this.scroll = make("div", { class: "scroll" }, this.box);
    host.append(make("div", { class: "axes", textContent: `${rows.name} ↓   ${columns.name} →` }), this.scroll);
    const at = (event) => {
      const rect = this.canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - rect.left - this.left) / this.width);
      const row = Math.floor((event.clientY - rect.top - this.top) / this.height);
      return row >= 0 && column >= 0 && row < rows.labels.length && column < columns.labels.length ? [row, column] : null;
    };
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = at(event);
      if (cell) this.go(...cell);
      else this.hide();
    });
    this.canvas.addEventListener("pointerdown", (event) => {
      const cell = at(event);
      if (cell) this.go(...cell);
    });
    this.canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hide());
    this.canvas.addEventListener("focus", () => this.canvas.matches(":focus-visible") && this.go(this.row, this.column));
    this.canvas.addEventListener("blur", () => this.hide());
    this.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (event.key === "Escape") this.hide();
      if (!step) return;
      event.preventDefault();
      const within = (value, count) => Math.min(count - 1, Math.max(0, value));
      this.go(within(this.row + step[0], rows.labels.length), within(this.column + step[1], columns.labels.length), true);
    });
  }

  go(row, column, byKey = false) {
    [this.row, this.column] = [row, column];
    const style = this.cursor.style;
    style.left = this.left + column * this.width + "px";
    style.top = this.top + row * this.height + "px";
    style.width = Math.max(3, this.width) + "px";
    style.height = Math.max(3, this.height) + "px";
    this.cursor.hidden = false;
    if (byKey) this.cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.tip.show(this.lines(row, column), this.cursor.getBoundingClientRect());
    this.moved(row);
  }

  hide() {
    this.cursor.hidden = true;
    this.tip.hide();
  }

  draw(values, scale) {
    const rows = this.rows.labels, columns = this.columns.labels, n = Math.max(1, rows.length), m = Math.max(1, columns.length);
    const context = this.canvas.getContext("2d");
    context.font = FONT;
    const cut = (text) => (text.length > 24 ? text.slice(0, 23) + "…" : text).trimStart();
    const widest = (labels) => labels.reduce((most, label) => Math.max(most, context.measureText(cut(label)).width), 0);
    const room = this.scroll.clientWidth || 600;
    this.left = Math.ceil(widest(rows)) + 8;
    const least = m > 150 ? 1 : m > 60 ? 4 : 12;
    const few = n * m <= 400 && m <= 16;
    const fits = (room - this.left - 2) / m;
    this.width = Math.min(few ? 50 : 24, Math.max(least, m > 150 ? Math.floor(fits * 4) / 4 : Math.floor(fits)));
    this.height = n === m ? Math.min(this.width, 26) : Math.min(22, Math.max(n > 150 ? 2 : 12, Math.floor(560 / n)));
    const ratio = Math.min(devicePixelRatio || 1, 16000 / (this.height * n + 200), 16000 / (this.width * m + 200));
    const flat = widest(columns) <= this.width - 4;
    this.top = flat ? 18 : Math.ceil(widest(columns)) + 10;
    const size = [this.left + this.width * m + 2, this.top + this.height * n + 2];
    this.canvas.width = Math.max(1, Math.floor(size[0] * ratio));
    this.canvas.height = Math.max(1, Math.floor(size[1] * ratio));
    this.canvas.style.width = size[0] + "px";
    this.canvas.style.height = size[1] + "px";
    context.scale(ratio, ratio);
    context.font = FONT;
    context.imageSmoothingEnabled = false;
    if (rows.length && columns.length) {
      const image = imageOf(values, n, m, scale);
      context.drawImage(image, this.left, this.top, this.width * m, this.height * n);
    }
    const ink = getComputedStyle(this.canvas).color;
    context.strokeStyle = ink;
    context.globalAlpha = 0.35;
    context.strokeRect(this.left - 0.5, this.top - 0.5, this.width * m + 1, this.height * n + 1);
    context.globalAlpha = 1;
    context.fillStyle = ink;
    const every = (cell) => Math.max(1, Math.ceil(12 / cell));
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let row = 0; row < rows.length; row += every(this.height))
      context.fillText(cut(rows[row]), this.left - 6, this.top + (row + 0.5) * this.height);
    context.textAlign = flat ? "center" : "left";
    for (let column = 0; column < columns.length; column += flat ? 1 : every(this.width)) {
      context.save();
      context.translate(this.left + (column + 0.5) * this.width, this.top - 6);
      if (!flat) context.rotate(-Math.PI / 2);
      context.fillText(cut(columns[column]), 0, flat ? -3 : 0);
      context.restore();
    }
    const longest = few ? values.reduce((most, value) => Math.max(most, context.measureText(value.toFixed(2)).width), 0) : 0;
    if (few && this.width >= longest + 6 && this.height >= 14) {
      context.textAlign = "center";
      for (let i = 0; i < n * m; i++) {
        if (!Number.isFinite(values[i]) || (!this.zeros && values[i] === 0)) continue;
        context.fillStyle = inkOn(rgbOf(scale, values[i]));
        const x = this.left + ((i % m) + 0.5) * this.width, y = this.top + (Math.floor(i / m) + 0.5) * this.height;
        context.fillText(values[i].toFixed(2), x, y);
      }
    }
  }
}

function drawMap(figure, text, host) {
  const all = arrayOf(text, figure.values), { rows, columns, panels } = figure;
  const tip = new Tip(host), size = rows.labels.length * columns.labels.length;
  let panel = 0;
  const values = () => all.subarray(panel * size, (panel + 1) * size);
  const bar = legend(figure.scale, figure.name);
  if (panels.length > 1) host.append(chooser("Panel", panels, (next) => ((panel = next), redraw())));
  const matrix = new Matrix(host, tip, {
    rows,
    columns,
    label: `${rows.labels.length} × ${columns.labels.length} values: arrow keys move from one to the next`,
    lines: (row, column) => [
      [rows.name, rows.labels[row]],
      [columns.name, columns.labels[column]],
      [figure.name, shown(values()[row * columns.labels.length + column])],
    ],
  });
  host.append(bar.element);
  const redraw = () => {
    matrix.draw(values(), figure.scale);
    bar.draw();
  };
  redraw();
  return redraw;
}

function drawPatterns(figure, text, host) {
  const { queries, keys, panels } = figure;
  const tip = new Tip(host), name = (panel) => `L${panels[panel][0]}H${panels[panel][1]}`;
  let panel = 0, values = patternOf(figure, text, 0), query = queries.length - 1, relative = false, root = keys.length > 64;
  let scale = { ramp: "sequential", low: 0, high: 1 };
  const rescale = () => {
    let low = 0, high = 0;
    for (const value of values) {
      if (value > high && value < Infinity) high = value;
      if (value < low && value > -Infinity) low = value;
    }
    const reach = Math.max(high, -low);
    if (low < 0) scale = { ramp: "diverging", low: -reach, high: reach };
    else scale = { ramp: "sequential", low: 0, high: relative || high > 1.001 ? high || 1 : 1, root };
  };

  // A small picture of each head.
  const thumbs = panels.map(([layer, head], index) =>
    make("button", { type: "button", class: "thumb", title: `L${layer}H${head}`, "aria-label": `layer ${layer}, head ${head}`, "aria-pressed": String(!index) }),
  );
  if (panels.length > 1) {
    const layers = [...new Set(panels.map(([layer]) => layer))];
    const most = Math.max(...layers.map((layer) => panels.filter(([of]) => of === layer).length));
    const grid = make("div", { class: "thumbs", role: "group", "aria-label": "Heads" });
    grid.style.gridTemplateColumns = `auto repeat(${most}, minmax(1.3rem, 3.6rem))`;
    layers.forEach((layer, row) => {
      const label = make("span", { class: "layer", textContent: "L" + layer });
      label.style.gridRow = row + 1;
      label.style.gridColumn = 1;
      grid.append(label);
      panels.forEach(([of], index) => {
        if (of !== layer) return;
        const place = panels.slice(0, index).filter(([other]) => other === layer).length;
        thumbs[index].style.gridRow = row + 1;
        thumbs[index].style.gridColumn = place + 2;
        grid.append(thumbs[index]);
      });
    });
    host.append(grid);
    rove(grid, thumbs, { columns: () => most, enter() {}, pick: (index) => show(index) });
    let waiting = [];
    const drawSome = () => {
      const start = performance.now();
      while (waiting.length && performance.now() - start < 12) drawThumb(waiting.shift());
      if (waiting.length) setTimeout(drawSome, 4);
    };
    const watch = new IntersectionObserver((entries) => {
      const idle = !waiting.length;
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watch.unobserve(entry.target);
        waiting.push(thumbs.indexOf(entry.target));
      }
      if (idle) drawSome();
    });
    thumbs.forEach((thumb) => watch.observe(thumb));
  }
  const drawThumb = (index) => {
    const of = patternOf(figure, text, index), most = of.reduce((a, b) => Math.max(a, Number.isFinite(b) ? b : 0), 0);
    const image = imageOf(of, queries.length, keys.length, { ramp: "sequential", low: 0, high: most > 1.001 ? most : 1, root: keys.length > 64 });
    const canvas = make("canvas", { width: 56, height: 56, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = keys.length > 56;
    context.drawImage(image, 0, 0, 56, 56);
    thumbs[index].replaceChildren(canvas);
  };

  const heading = make("strong", { class: "panel" });
  const choice = (text, checked, change) => {
    const box = make("input", { type: "checkbox", checked });
    box.addEventListener("change", () => (change(box.checked), redraw()));
    return make("label", {}, box, " " + text);
  };
  host.append(
    make(
      "div",
      { class: "controls" },
      heading,
      choice("colours up to the largest value", relative, (yes) => (relative = yes)),
      choice("by the square root", root, (yes) => (root = yes)),
    ),
  );
  const lines = (row, column) => {
    const value = values[row * keys.length + column];
    return [
      ["query", `${queries[row]} (${row})`],
      ["key", `${keys[column]} (${column})`],
      [name(panel), shownWithin(value, errorOf(figure, value))],
    ];
  };
  const matrix = new Matrix(host, tip, {
    rows: { name: "query", labels: queries },
    columns: { name: "key", labels: keys },
    label: "Attention from queries to keys: arrow keys move from one to the next",
    lines,
    zeros: false,
    moved: (row) => row !== query && ((query = row), paint()),
  });
  const bar = legend(scale, "attention");
  host.append(bar.element);

  // The keys in the colours of one query.
  const same = queries.length === keys.length && queries.every((token, i) => token === keys[i]);
  const note = make("p", { class: "note" });
  const tokens = keys.map((token) => make("span", { class: "token", textContent: token || " " }));
  const strip = make("div", { class: "strip", role: "group", "aria-label": "Keys" }, ...tokens);
  host.append(note, strip);
  rove(strip, tokens, {
    enter: (index) => tip.show(lines(query, index), tokens[index].getBoundingClientRect()),
    leave: () => tip.hide(),
    pick: (index) => same && ((query = index), paint(), tip.show(lines(query, index), tokens[index].getBoundingClientRect())),
  });
  const paint = () => {
    note.textContent = queries.length ? `Attention from “${queries[query].trim()}” (${query}).${same ? " Choose another token to see from it." : ""}` : "";
    tokens.forEach((token, column) => {
      const rgb = rgbOf(scale, values[query * keys.length + column]);
      token.style.backgroundColor = css(rgb);
      token.style.color = inkOn(rgb);
      token.classList.toggle("chosen", same && column === query);
    });
  };
  const redraw = () => {
    rescale();
    heading.textContent = panels.length ? name(panel) : "";
    matrix.draw(values, scale);
    bar.draw(scale);
    paint();
  };
  const show = (index) => {
    thumbs[panel].setAttribute("aria-pressed", "false");
    panel = index;
    thumbs[panel].setAttribute("aria-pressed", "true");
    values = patternOf(figure, text, panel);
    redraw();
  };
  redraw();
  return (themed) => {
    redraw();
    if (themed) thumbs.forEach((thumb, index) => thumb.firstChild && drawThumb(index));
  };
}
