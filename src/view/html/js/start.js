// Each figure is drawn when it comes into view, and again when the window or its colours change.

const DRAW = { patterns: drawPatterns, map: drawMap, tokens: drawTokens, table: drawTable, svg: drawSvg };
const redraws = [];

function drawFigure(element) {
  const index = Number(element.id.slice("figure-".length)), figure = DATA.figures[index];
  if (element.dataset.drawn || !figure) return;
  element.dataset.drawn = "yes";
  const drawing = element.querySelector(".drawing");
  redraws.push(DRAW[figure.type](figure, numbersOf(index), drawing));
}

const figures = [...document.querySelectorAll("figure")];
const view = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      view.unobserve(entry.target);
      drawFigure(entry.target);
    }
  },
  { rootMargin: "400px" },
);
figures.forEach((figure) => view.observe(figure));
addEventListener("beforeprint", () => figures.forEach(drawFigure));
DARK.addEventListener("change", () => redraws.forEach((redraw) => redraw(true)));
let width = innerWidth, pending = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => redraws.forEach((redraw) => redraw(false)));
});
