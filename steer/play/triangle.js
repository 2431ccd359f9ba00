// A point in a triangle: props.value is {traits: [top, left, right], shares: [...]}, props.options
// all traits, props.regions who serves what. Moving the point triggers "input", choosing another
// trait for a corner "select".
const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [[100, 0], [0, 173.2], [200, 173.2]];
const svg = element.querySelector("svg");
const point = element.querySelector(".point");
const picks = [...element.querySelectorAll(".pick")];
let value = { traits: [], shares: [1 / 3, 1 / 3, 1 / 3] };
let dragging = false;
let waiting = false;

function made(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, one] of Object.entries(attributes)) node.setAttribute(key, one);
  if (text !== undefined) node.textContent = text;
  return node;
}

function place(shares) {
  return [0, 1].map((axis) => shares.reduce((sum, share, i) => sum + share * CORNERS[i][axis], 0));
}

// Shares of the place, or of the nearest one inside.
function shares([x, y]) {
  const top = 1 - y / 173.2;
  const right = x / 200 - top / 2;
  const found = [top, 1 - top - right, right].map((share) => Math.max(0, share));
  const total = found[0] + found[1] + found[2];
  return found.map((share) => share / total);
}

function drawPoint() {
  const [x, y] = place(value.shares);
  point.setAttribute("cx", x);
  point.setAttribute("cy", y);
  const told = value.traits.map((name, i) => `${name} ${Math.round(100 * value.shares[i])}%`);
  element.querySelector(".read").textContent = told.join(" · ");
}

function drawPicks() {
  picks.forEach((pick, corner) => {
    pick.replaceChildren(
      ...props.options.map((name) => new Option(name, name, false, name === value.traits[corner])),
    );
  });
}

function drawRegions() {
  const shapes = [];
  const labels = [];
  for (const one of props.regions) {
    const shape = made("path", { d: one.path, fill: one.colour, stroke: one.colour });
    shape.append(made("title", {}, one.number ? `entry ${one.number}` : "the unsteered model"));
    shapes.push(shape);
    labels.push(made("text", { x: one.x, y: one.y + 4, "text-anchor": "middle" }, one.number));
  }
  element.querySelector(".regions").replaceChildren(...shapes);
  element.querySelector(".labels").replaceChildren(...labels);
}

function take() {
  if (dragging) return;
  value = { traits: [...props.value.traits], shares: [...props.value.shares] };
  drawPicks();
  drawPoint();
}

// No more than the page can draw.
function move(found) {
  value.shares = found;
  drawPoint();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    tell("input");
  });
}

function tell(event) {
  props.value = { traits: [...value.traits], shares: [...value.shares] };
  trigger(event, {});
}

function pointed(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
    svg.getScreenCTM().inverse(),
  );
  move(shares([at.x, at.y]));
}

svg.addEventListener("pointerdown", (event) => {
  dragging = true;
  svg.setPointerCapture(event.pointerId);
  svg.focus();
  pointed(event);
  event.preventDefault();
});
svg.addEventListener("pointermove", (event) => dragging && pointed(event));
for (const end of ["pointerup", "pointercancel"]) {
  svg.addEventListener(end, () => {
    dragging = false;
  });
}
svg.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 2 : 10;
  const ways = {
    ArrowUp: [0, -step],
    ArrowDown: [0, step],
    ArrowLeft: [-step, 0],
    ArrowRight: [step, 0],
  };
  const way = ways[event.key];
  if (event.key === "Home") move([1 / 3, 1 / 3, 1 / 3]);
  else if (way) move(shares(place(value.shares).map((at, axis) => at + way[axis])));
  else return;
  event.preventDefault();
});
for (const pick of picks) {
  pick.addEventListener("change", () => {
    const corner = Number(pick.dataset.corner);
    const other = value.traits.indexOf(pick.value);
    if (other >= 0) value.traits[other] = value.traits[corner];
    value.traits[corner] = pick.value;
    drawPicks();
    tell("select");
  });
}

watch("value", take);
watch("regions", drawRegions);
take();
drawRegions();
