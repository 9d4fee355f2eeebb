"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const control = (id) => document.getElementById(id);
  // Plotly reads a little markup in names, so what came from data is escaped for it.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const layout = { margin: { t: 20, r: 20 }, legend: { orientation: "h", y: -0.25 } };
  const options = { displaylogo: false, responsive: true };
  const draw = (id, traces, extra) => {
    if (control(id)) Plotly.react(id, traces, { ...layout, ...extra }, options);
  };
  const lines = (names) => names.filter((name) => data.curves[name]).map((name) => ({
    x: data.curves[name].step, y: data.curves[name].value, name: plain(name), mode: "lines+markers", marker: { size: 4 },
  }));
  const axes = (title) => ({ xaxis: { title: { text: "step" } }, yaxis: { title: { text: title } }, showlegend: true });
  draw("plot-losses", lines(data.losses), axes("loss"));
  draw("plot-scores", lines(data.scores), axes("mIoU (%)"));
  draw("plot-thresholds", lines(data.thresholds), axes("threshold"));

  const fill = (select, names) => select.replaceChildren(...names.map((name) => new Option(name, name)));
  const choose = (id, names, show) => {
    if (!control(id)) return;
    fill(control(id), names);
    control(id).addEventListener("change", show);
    show();
  };
  choose("other", data.other.filter((name) => data.curves[name]), () => {
    const name = control("other").value;
    draw("plot-other", lines([name]), axes(plain(name)));
  });
  choose("measurement", data.measurements, () => {
    const name = control("measurement").value;
    const traces = Object.entries(data.iou).filter(([, scores]) => scores[name]).map(([network, scores]) => ({
      x: data.names.map(plain), y: scores[name], name: plain(network), type: "bar",
    }));
    draw("plot-classes", traces, { barmode: "group", showlegend: true, yaxis: { title: { text: "IoU (%)" } } });
  });
  if (data.confusion) {
    const names = data.names.map(plain);
    draw("plot-confusion", [{ z: data.confusion, x: names, y: names, type: "heatmap", colorscale: "Viridis", zmin: 0, zmax: 100 }], {
      xaxis: { title: { text: "predicted" }, automargin: true }, yaxis: { title: { text: "true" }, autorange: "reversed", automargin: true },
    });
  }
})();
