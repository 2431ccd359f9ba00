// Marks where the manner stands: props.value is {x, y, entry}, nulls for nowhere.
function mark() {
  const { x, y, entry } = props.value;
  const here = element.querySelector(".here");
  here.style.display = x === null ? "none" : "";
  if (x !== null) {
    here.setAttribute("cx", x);
    here.setAttribute("cy", y);
  }
  element.querySelector("svg").classList.toggle("chosen", entry !== null);
  for (const one of element.querySelectorAll("[data-entry]")) {
    one.classList.toggle("serves", Number(one.dataset.entry) === entry && entry !== null);
  }
}
watch("value", mark);
mark();
