/** Everything that only a run needs: the strip, the panes and what draws in them. Loaded apart from the first screen. */
import { html } from "../html.js";
import { Grid } from "./grid.js";
import { Strip } from "./strip.js";

export const Lanes = () => html`<${Strip} /><${Grid} />`;
