// Node resolves bare names by the page's own import map, so that tests run exactly the files that are served.
import { register } from "node:module";
register("./resolve.mjs", import.meta.url);
