// A point in a triangle. props.value is what moves it: {values: a slider's number by trait, traits:
// for the corners, top, left and right, or none to leave them}. props.options are all traits,
// props.regions who serves what of which traits. The page is told {traits, shares} with "input" when
// the point is moved, and with "select" when a corner is given another trait. Which traits are at the
// corners is known here alone, so that what is late from the server does not change them back.
const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [[100, 0], [0, 173.2], [200, 173.2]];
const svg = element.querySelector("svg");
const point = element.querySelector(".point");
const picks = [...element.querySelectorAll(".pick")];
let traits = [];
let values = {};
let shares = [1 / 3, 1 / 3, 1 / 3];
let dragging = false;
let waiting = false;

function made(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, one] of Object.entries(attributes)) node.setAttribute(key, one);
  if (text !== undefined) node.textContent = text;
  return node;
}

function place() {
  return [0, 1].map((axis) => shares.reduce((sum, share, i) => sum + share * CORNERS[i][axis], 0));
}

// Shares of the place, or of one near it that is inside.
function sharesAt([x, y]) {
  const top = 1 - y / 173.2;
  const right = x / 200 - top / 2;
  const found = [top, 1 - top - right, right].map((share) => Math.max(0, share));
  const total = found[0] + found[1] + found[2];
  return found.map((share) => share / total);
}

function drawPoint() {
  const [x, y] = place();
  point.setAttribute("cx", x);
  point.setAttribute("cy", y);
  const told = traits.map((name, i) => `${name} ${Math.round(100 * shares[i])}%`);
  element.querySelector(".read").textContent = told.join(" · ");
}

function drawPicks() {
  picks.forEach((pick, corner) => {
    pick.replaceChildren(
      ...props.options.map((name) => new Option(name, name, false, name === traits[corner])),
    );
  });
}

function drawRegions() {
  const shapes = [];
  const labels = [];
  // Those of other traits were asked for before the corners changed again.
  const mine = String(props.regions.traits) === String(traits);
  for (const one of mine ? props.regions.shapes : []) {
    const shape = made("path", { d: one.path, fill: one.colour, stroke: one.colour });
    shape.append(made("title", {}, one.number ? `entry ${one.number}` : "the unsteered model"));
    shapes.push(shape);
    labels.push(made("text", { x: one.x, y: one.y + 4, "text-anchor": "middle" }, one.number));
  }
  element.querySelector(".regions").replaceChildren(...shapes);
  element.querySelector(".labels").replaceChildren(...labels);
}

// Where the sliders put the point; in the middle if none of the corners' is up.
function follow() {
  const mine = traits.map((name) => values[name] || 0);
  const total = mine[0] + mine[1] + mine[2];
  shares = mine.map((one) => (total ? one / total : 1 / 3));
  drawPoint();
}

function take() {
  if (dragging || !props.value.values) return;
  values = { ...props.value.values };
  if (props.value.traits) {
    traits = [...props.value.traits];
    drawPicks();
    drawRegions();
  }
  follow();
}

// No more than the page can draw.
function move(found) {
  shares = found;
  values = Object.fromEntries(traits.map((name, i) => [name, shares[i]]));
  drawPoint();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    tell("input");
  });
}

function tell(event) {
  props.value = { traits: [...traits], shares: [...shares] };
  trigger(event, {});
}

function pointed(event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
    svg.getScreenCTM().inverse(),
  );
  move(sharesAt([at.x, at.y]));
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
  else if (way) move(sharesAt(place().map((at, axis) => at + way[axis])));
  else return;
  event.preventDefault();
});
for (const pick of picks) {
  pick.addEventListener("change", () => {
    const corner = Number(pick.dataset.corner);
    const other = traits.indexOf(pick.value);
    if (other >= 0) traits[other] = traits[corner];
    traits[corner] = pick.value;
    drawPicks();
    drawRegions();
    follow();
    tell("select");
  });
}

watch("value", take);
watch("regions", drawRegions);
take();
