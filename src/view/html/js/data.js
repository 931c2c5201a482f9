"use strict";
// What the page carries: texts as JSON, numbers as base64, decoded when they are drawn.

const DATA = JSON.parse(document.getElementById("figures").textContent);
const DARK = matchMedia("(prefers-color-scheme: dark)");

// The numbers of a figure, as base64.
function numbersOf(index) {
  const element = document.getElementById("numbers-" + index);
  return element ? element.textContent : "";
}

// Some bytes of base64; `at` is a multiple of three.
function bytesOf(text, at, length) {
  const raw = atob(text.slice((at / 3) * 4, Math.ceil((at + length) / 3) * 4));
  const bytes = new Uint8Array(Math.ceil(length / 4) * 4);
  for (let i = 0; i < length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes.buffer;
}

function arrayOf(text, { at, n, kind }) {
  const buffer = bytesOf(text, at, 4 * n);
  return kind === "u32" ? new Uint32Array(buffer, 0, n) : new Float32Array(buffer, 0, n);
}

function halfToNumber(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, part = half & 1023;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + part / 1024) * 2 ** (exponent - 15) : part * 2 ** -24);
}

// One panel of attention patterns: [query, key]. Keys that were left out, after a causal query, are zero.
function patternOf(figure, text, panel) {
  const rows = figure.queries.length, columns = figure.keys.length, values = new Float32Array(rows * columns);
  const count = figure.causal ? (rows * (rows + 1)) / 2 : rows * columns;
  const byte = figure.kind === "root8";
  const buffer = bytesOf(text, panel * figure.stride, byte ? count : 2 * count);
  const kept = byte ? new Uint8Array(buffer) : new Uint16Array(buffer);
  let next = 0;
  for (let row = 0; row < rows; row++) {
    const end = figure.causal ? row + 1 : columns;
    for (let column = 0; column < end; column++) {
      const value = kept[next++];
      values[row * columns + column] = byte ? (value / 255) ** 2 : halfToNumber(value);
    }
  }
  return values;
}

// How far a number of a pattern may be off.
function errorOf(figure, value) {
  if (!Number.isFinite(value)) return 0;
  if (figure.kind === "root8") return (Math.sqrt(Math.abs(value)) + 1 / 1020) / 255;
  return Math.max(Math.abs(value) * 2 ** -11, 2 ** -25);
}

// A number in few characters.
function shown(value) {
  const size = Math.abs(value);
  if (Number.isNaN(value)) return "no value";
  if (size === Infinity) return value > 0 ? "∞" : "−∞";
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e5) return value.toExponential(2);
  return value.toFixed(size >= 100 ? 1 : size >= 1 ? 3 : 4);
}

// A number with what it may be off by: as many digits as hold.
function shownWithin(value, error) {
  if (!Number.isFinite(value) || value === 0) return shown(value);
  const digits = Math.min(7, Math.max(0, Math.ceil(-Math.log10(error))));
  return value.toFixed(digits) + " ± " + error.toPrecision(1);
}

// A number without the zeros that it ends in.
function short(value) {
  return shown(value).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

// Where a value lies from one end of a scale to the other: from 0 to 1.
function placeOf(scale, value) {
  const part = Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low)));
  return scale.root ? Math.sqrt(part) : part;
}

function rgbOf(scale, value) {
  if (Number.isNaN(value)) return DARK.matches ? [70, 72, 78] : DATA.none;
  const stops = DATA.ramps[scale.ramp][DARK.matches ? "dark" : "light"];
  const place = placeOf(scale, value) * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2), part = place - first;
  return stops[first].map((from, i) => Math.round(from + (stops[first + 1][i] - from) * part));
}

function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

// The colour of text on another one.
function inkOn([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b < 140 ? "#fff" : "#1a1a1a";
}
