// What pointers, touch and keys do, the same for all figures.

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") element.className = value;
    else if (key in element && key !== "role") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// The box that says what is under the pointer, or at the place that keys have chosen. Screen readers read it.
class Tip {
  constructor(host) {
    this.host = host;
    this.box = make("div", { class: "tip", role: "status", "aria-live": "polite", hidden: true });
    host.append(this.box);
  }

  // Lines are texts, or pairs of a name and a value; near a rectangle of the window.
  show(lines, rect) {
    this.box.replaceChildren(
      ...lines.map((line) =>
        Array.isArray(line)
          ? make("div", { class: "pair" }, make("span", { textContent: line[0] }), make("span", { textContent: line[1] }))
          : make("div", { textContent: line }),
      ),
    );
    this.box.hidden = false;
    const host = this.host.getBoundingClientRect();
    const width = this.box.offsetWidth, height = this.box.offsetHeight;
    let left = rect.right + 10;
    if (left + width > host.right) left = rect.left - width - 10;
    left = Math.max(host.left, Math.min(left, host.right - width));
    let top = rect.bottom + 8;
    if (top + height > innerHeight) top = Math.max(0, rect.top - height - 8);
    this.box.style.left = left - host.left + "px";
    this.box.style.top = top - host.top + "px";
  }

  hide() {
    this.box.hidden = true;
  }
}

// Items of which one at a time is in the order of Tab; arrows go to the others. `columns` of them make a row.
function rove(host, items, { columns = () => items.length, enter, leave = () => {}, pick = () => {} }) {
  if (!items.length) return { select() {} };
  let current = 0;
  const indices = new Map(items.map((item, index) => [item, index]));
  items.forEach((item, index) => item.setAttribute("tabindex", index ? "-1" : "0"));
  const indexOf = (target) => {
    for (let element = target; element && element !== host; element = element.parentNode)
      if (indices.has(element)) return indices.get(element);
    return -1;
  };
  const select = (index) => {
    items[current].setAttribute("tabindex", "-1");
    current = index;
    items[current].setAttribute("tabindex", "0");
  };
  host.addEventListener("pointerover", (event) => {
    const index = indexOf(event.target);
    if (index >= 0) enter(index);
  });
  host.addEventListener("pointerleave", () => leave());
  host.addEventListener("focusin", (event) => {
    const index = indexOf(event.target);
    if (index < 0) return;
    select(index);
    enter(index);
  });
  host.addEventListener("focusout", () => leave());
  host.addEventListener("click", (event) => {
    const index = indexOf(event.target);
    if (index < 0) return;
    items[index].focus({ preventScroll: true });
    pick(index);
  });
  host.addEventListener("keydown", (event) => {
    const row = columns();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
    let next = step === undefined ? -1 : current + step;
    if (row >= items.length && (event.key === "ArrowDown" || event.key === "ArrowUp"))
      next = current + Math.sign(step);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = items.length - 1;
    if (event.key === "Escape") leave();
    if ((event.key === "Enter" || event.key === " ") && items[current].tagName !== "BUTTON") {
      event.preventDefault();
      pick(current);
    }
    if (next < 0 || next >= items.length) return;
    event.preventDefault();
    items[next].focus();
  });
  return { select };
}

// A list of choices.
function chooser(label, options, change) {
  const select = make("select", {}, ...options.map((text, i) => make("option", { value: String(i), textContent: text })));
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", { class: "chooser" }, label + " ", select);
}

function legend(scale, name) {
  const bar = make("canvas", { class: "legend-bar", width: 120, height: 1, "aria-hidden": "true" });
  const element = make("div", { class: "legend" });
  const draw = (next = scale) => {
    scale = next;
    const context = bar.getContext("2d");
    for (let x = 0; x < 120; x++) {
      const part = (x + 0.5) / 120;
      context.fillStyle = css(rgbOf(scale, scale.low + (scale.high - scale.low) * (scale.root ? part * part : part)));
      context.fillRect(x, 0, 1, 1);
    }
    element.replaceChildren(short(scale.low), bar, `${short(scale.high)}  ${name}${scale.root ? ", colours by its square root" : ""}`);
  };
  draw();
  return { element, draw };
}
