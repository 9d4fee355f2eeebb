"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const byId = new Map(runs.map((run) => [run.id, run]));
  const MOST_CHOSEN = 6;

  // Sorting: a click on a heading sorts its table, a second one the other way round; empty cells stay last.
  const cellValue = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  for (const heading of document.querySelectorAll("table.runs th[aria-sort]")) {
    heading.querySelector("button").addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      const body = heading.closest("table").tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [cellValue(a, heading.cellIndex), cellValue(b, heading.cellIndex)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return falling ? compare(y, x) : compare(x, y);
      });
      for (const other of heading.parentElement.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      body.append(...rows);
    });
  }

  // Filtering: text over the row, whole tables by data set and protocol.
  const control = (id) => document.getElementById(id);
  const filter = () => {
    const words = control("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const section of document.querySelectorAll("section.ranking")) {
      const wanted = (name) => !control(name).value || section.dataset[name] === control(name).value;
      let left = 0;
      for (const row of section.querySelectorAll("table.runs tbody tr")) {
        const text = row.textContent.toLowerCase();
        const published = row.classList.contains("published");
        row.hidden = !words.every((word) => text.includes(word)) || (published && !control("published").checked);
        left += !row.hidden;
      }
      section.hidden = !wanted("dataset") || !wanted("protocol") || left === 0;
    }
  };
  for (const id of ["filter", "dataset", "protocol", "published"]) control(id).addEventListener("input", filter);
  if (!runs.length) return;

  // Details of the chosen runs.
  const boxes = [...document.querySelectorAll("input.choose")];
  const chosen = () => [...new Set(boxes.filter((box) => box.checked).map((box) => box.value))].map((id) => byId.get(id));
  const fill = (select, names) => {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
  };
  const union = (lists) => [...new Set(lists.flat())];
  // Plotly reads a little markup in names, so what came from data is escaped for it.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const layout = { margin: { t: 20, r: 20 }, legend: { orientation: "h", y: -0.25 } };
  const options = { displaylogo: false, responsive: true };

  const drawCurves = () => {
    const name = control("curve").value;
    const traces = chosen().filter((run) => run.curves[name]).map((run) => ({
      x: run.curves[name].step, y: run.curves[name].value, name: plain(run.label), mode: "lines+markers", marker: { size: 4 },
    }));
    Plotly.react("curves", traces, { ...layout, xaxis: { title: { text: "step" } }, yaxis: { title: { text: name } } }, options);
  };
  const drawClasses = () => {
    const traces = chosen().filter((run) => Object.keys(run.iou).length).map((run) => ({
      x: Object.keys(run.iou).map(plain), y: Object.values(run.iou), name: plain(`${run.label}, ${run.network}`), type: "bar",
    }));
    Plotly.react("classes", traces, { ...layout, barmode: "group", yaxis: { title: { text: "IoU (%)" } } }, options);
  };
  const drawSamples = () => {
    const name = control("picture").value;
    control("samples").replaceChildren(...chosen().filter((run) => run.pictures[name]).map((run) => {
      const figure = document.createElement("figure");
      const image = Object.assign(new Image(), { src: run.pictures[name], alt: `${name} of ${run.label}` });
      const caption = Object.assign(document.createElement("figcaption"), { textContent: run.label });
      figure.append(caption, image);
      return figure;
    }));
  };
  const draw = () => {
    const metrics = union(chosen().map((run) => Object.keys(run.curves)));
    const preferred = ["val/miou_unfiltered", "train/total"].filter((name) => metrics.includes(name));
    fill(control("curve"), union([preferred, metrics]));
    fill(control("picture"), union(chosen().map((run) => Object.keys(run.pictures))).sort());
    drawCurves();
    drawClasses();
    drawSamples();
  };
  for (const box of boxes) {
    box.addEventListener("change", () => {
      for (const twin of boxes) if (twin.value === box.value) twin.checked = box.checked;
      if (chosen().length > MOST_CHOSEN) for (const twin of boxes) if (twin.value === box.value) twin.checked = false;
      draw();
    });
  }
  control("curve").addEventListener("change", drawCurves);
  control("picture").addEventListener("change", drawSamples);
  draw();
})();
