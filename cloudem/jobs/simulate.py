"""``cloudem simulate``: a density from an atomic model, and particles from a density."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import OutputExistsError, ParameterError, shown
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, option_of, parameter
from cloudem.jobs.provenance import is_of, job_record

if TYPE_CHECKING:
    from cloudem.algorithms.simulate import Recording
    from cloudem.io.formats.mrc import Volume

DEMO_BOX, DEMO_PIXEL_A = 96, 2.5

IMAGE_PIXEL_S, VOXEL_S = 1.0e-7, 1.0e-6
"""A pixel of an image, and a voxel of a density: CPU-seconds, one run."""

DENSITY_FILE, START_FILE, PARTICLES = "density.mrc", "start.mrc", "particles.zarr"


def coefficients(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of a list such as ``[0.1,-0.2]``.

    Raises
    ------
    ParameterError
        Something in it is no finite number.
    """
    try:
        words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
        values = tuple(map(float, words))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise ParameterError(f"{option}: got {shown(text)}, needs finite numbers, such as [0.1,-0.2]")
    return values


class Simulate(Job):
    """Declaration of ``cloudem simulate``."""

    name: ClassVar[str] = "simulate"
    summary: ClassVar[str] = "Simulate a density from an atomic model, and particles from a density."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem simulate --demo --blind --out demo",
        "cloudem simulate --model 4v1w.cif --box-px 64 --pixel-size-A 3 --count 2500 --out apoferritin",
        "cloudem simulate --density map.mrc --count 5000 --snr 0.05 --out particles",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {
        "": ("files",),
        DENSITY_FILE: ("volume",),
        START_FILE: ("volume",),
        PARTICLES: ("particles",),
    }

    out: Place = parameter(
        meaning=f"folder for {DENSITY_FILE} (the truth), {START_FILE} (low-pass filtered) and {PARTICLES}"
    )
    model: Place | None = parameter(None, meaning="atomic model (mmCIF or PDB file)", reads=("model",))
    density: Place | None = parameter(
        None, meaning="density to project (MRC file), with positive protein", reads=("volume",)
    )
    demo: bool = parameter(False, meaning="use the built-in molecule: helices in a globule of 160 Å, without symmetry")
    assembly: str | None = parameter(None, meaning="biological assembly to build; if none, the model as deposited")
    box_px: int | None = parameter(None, meaning=f"box of the density, an even number; {DEMO_BOX} for the demo", gt=0)
    pixel_size_A: float | None = parameter(
        None, meaning=f"voxel size of the density; {DEMO_PIXEL_A} for the demo, that of the file for --density", gt=0
    )
    model_b_factor_A2: float | None = parameter(None, meaning="B-factor for all atoms; if none, their own", ge=0)
    solvent: bool = parameter(True, meaning="put the model in ice rather than in vacuum")
    start_resolution_A: float = parameter(40.0, meaning="resolution of the starting map", gt=0)
    count: int = parameter(2000, meaning="number of particles; 0: densities only", ge=0)
    seed: int = parameter(0, meaning="random seed for molecule, poses and noise", ge=0)
    blind: bool = parameter(
        False, meaning="omit poses and half-sets; the truth is kept in the group truth of the store"
    )
    shift_sigma_A: float = parameter(4.0, meaning="standard deviation of the shifts in x and y", ge=0)
    defocus_min_A: float = parameter(10000.0, meaning="lowest defocus of a micrograph", ge=0)
    defocus_max_A: float = parameter(25000.0, meaning="highest defocus of a micrograph", ge=0)
    astigmatism_A: float = parameter(200.0, meaning="standard deviation of the astigmatism, defocus U - V", ge=0)
    particles_per_micrograph: int = parameter(50, meaning="number of particles that share a defocus", gt=0)
    voltage_kV: float = parameter(300.0, meaning="acceleration voltage", gt=0)
    cs_mm: float = parameter(2.7, meaning="spherical aberration", ge=0)
    amplitude_contrast: float = parameter(0.1, meaning="fraction of amplitude contrast", ge=0, le=1)
    beam_tilt_x_mrad: float = parameter(0.0, meaning="beam tilt along x, as rlnBeamTiltX", ge=-100, le=100)
    beam_tilt_y_mrad: float = parameter(0.0, meaning="beam tilt along y, as rlnBeamTiltY", ge=-100, le=100)
    odd_zernike_rad: str = parameter("", meaning="odd Zernike coefficients, as rlnOddZernike: [0,0,0.3,0,0,-0.2]")
    even_zernike_rad: str = parameter("", meaning="even Zernike coefficients, as rlnEvenZernike")
    anisotropy: float = parameter(
        0.0, meaning="share by which images are stretched along one direction more than across", ge=0, le=0.2
    )
    anisotropy_angle_deg: float = parameter(0.0, meaning="angle of that direction from the x axis")
    snr: float = parameter(0.05, meaning="ratio of signal variance to noise variance in the box; 0: noise only", ge=0)
    noise: bool = parameter(True, meaning="add noise; without it, images are projections with the CTF applied")
    noise_ratio: float = parameter(
        0.0, meaning="coloured noise, with power 1 + ratio / (1 + (s length)²) at frequency s; 0: white", ge=0
    )
    noise_length_A: float = parameter(40.0, meaning="length in the formula of coloured noise", gt=0)
    b_factor_A2: float = parameter(0.0, meaning="B-factor of the signal: exp(-B s² / 4)", ge=0)
    dose_e_per_A2: float = parameter(0.0, meaning="exposure of dose-weighted images; 0: no radiation damage", ge=0)
    dtype: Literal["float16", "float32"] = parameter("float16", meaning="data type of the stored images")

    def model_post_init(self, _: Any) -> None:
        """Check what no single field can say."""
        given = [name for name in ("model", "density", "demo") if getattr(self, name)]
        if len(given) != 1:
            got = " and ".join(f"--{name}" for name in given) or "none"
            raise ParameterError(f"simulate needs exactly one of --model, --density and --demo; got {got}")
        if self.model and (self.box_px is None or self.pixel_size_A is None):
            raise ParameterError(
                "simulate --model needs --box-px and --pixel-size-A, the box and voxel size of the density"
            )
        if self.density and self.box_px:
            raise ParameterError("simulate --density takes the box from the file; leave out --box-px")
        if self.defocus_min_A > self.defocus_max_A:
            raise ParameterError(f"--defocus-min-A {self.defocus_min_A:g} is above --defocus-max-A")
        for name in ("odd_zernike_rad", "even_zernike_rad"):
            coefficients(getattr(self, name), option_of(name))

    def check_out(self) -> None:
        """Check that ``OUT`` holds no results of another job, and no particles but those of this very job."""
        from cloudem.jobs.checks import refuse_results_of_others

        refuse_results_of_others(self.out, self.name)
        self._has_particles()

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the model or the density's header, and that the aberrations can be put in."""
        from cloudem.algorithms.aberrations import aberrations_of
        from cloudem.kernels.aberrations import EVEN_ORDERS, ODD_ORDERS

        for name, orders in (("odd_zernike_rad", ODD_ORDERS), ("even_zernike_rad", EVEN_ORDERS)):
            if any(coefficients(getattr(self, name), option_of(name))[len(orders) :]):
                raise ParameterError(
                    f"{option_of(name)}: the first {len(orders)} coefficients can be put in, and others are not zero"
                )
        aberrations_of([self.recording().optics()])
        if self.density is not None and not inputs.awaited(self.density):
            from cloudem.jobs.maps import check_map

            check_map(self.density, self.pixel_size_A, "--pixel-size-A")
        if self.model is not None and not inputs.awaited(self.model):
            from cloudem.io.formats.atomic_model import read_atoms

            read_atoms(self.model, self.assembly)

    def _has_particles(self) -> bool:
        """Return whether the particles are there already, of a run that was interrupted; refuse those of others."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.io.storage.location import UNFINISHED, contents, exists, join

        particles = join(self.out, PARTICLES)
        whole = exists(particles) and UNFINISHED not in contents(particles)
        if whole and not is_of(read_attributes(particles, "") or {}, self):
            raise OutputExistsError(f"{particles} already exists; remove it or choose another --out")
        return whole

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box and count."""
        from cloudem.algorithms.simulate import simulation_bytes
        from cloudem.io.storage.location import is_remote

        density = sizes.get("density", Size())
        box = density.box or self.box_px or DEMO_BOX
        pixel_size = self.pixel_size_A or density.pixel_size or DEMO_PIXEL_A
        size = {"float16": 2, "float32": 4}[self.dtype]
        images = size * box * box
        particles = Size(self.count, (box, box), pixel_size, is_remote(self.out))
        volume = Size(0, (box,) * 3, pixel_size, particles.remote)
        return Work(
            (
                Stage("density", cpu_s=VOXEL_S * box**3),
                Stage("particles", self.count, "images", cpu_s=IMAGE_PIXEL_S * box * box, written_bytes=images),
            ),
            base_bytes=simulation_bytes(box) + 300 * MIB + 40 * 200 * box * box,
            stored_bytes=8 * box**3 + 200 * self.count,
            makes={PARTICLES: particles, DENSITY_FILE: volume, START_FILE: volume},
            notes=(f"{self.count} particles of {box} x {box} pixels",),
        )

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the particles say of themselves, once the truth is beside them, which is written last."""
        from cloudem.io.storage.groups import has_group
        from cloudem.io.storage.location import join

        particles = join(self.out, PARTICLES)
        return self.begun_record() if has_group(particles, "truth") else None

    def begun_record(self) -> Mapping[str, Any] | None:
        """Return what the particles say of themselves."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.io.storage.location import join

        return read_attributes(join(self.out, PARTICLES), "")

    def discard(self, guard: Callable[[], None]) -> None:
        """Delete the particles; the densities are written over."""
        from cloudem.io.storage.location import join
        from cloudem.io.storage.outputs import withdraw

        guard()
        withdraw(join(self.out, PARTICLES))

    def run(self, context: Context) -> None:
        """Write densities and particles."""
        from cloudem.algorithms.resolution import low_pass
        from cloudem.io.formats.mrc_writer import write_volume
        from cloudem.io.storage.location import join, object_store

        whole = self._has_particles()
        with context.progress.stage("density"):
            volume = self._density()
            start = low_pass(volume.data, volume.pixel_size, self.start_resolution_A)
        context.check()
        object_store(context.url, create=True)
        write_volume(join(context.url, DENSITY_FILE), volume.data, volume.pixel_size, volume.origin)
        write_volume(join(context.url, START_FILE), start, volume.pixel_size, volume.origin)
        if self.count:
            self._simulate(volume, join(context.url, PARTICLES), context, whole)

    def _density(self) -> Volume:
        from cloudem.algorithms.density import demo_molecule, density_of_atoms
        from cloudem.io.formats.atomic_model import read_atoms
        from cloudem.io.formats.mrc import NOWHERE, Volume
        from cloudem.jobs.maps import read_map

        if self.density:
            return read_map(self.density, self.pixel_size_A, "--pixel-size-A")
        atoms = read_atoms(self.model, self.assembly) if self.model else demo_molecule(seed=self.seed)
        box, pixel_size = self.box_px or DEMO_BOX, self.pixel_size_A or DEMO_PIXEL_A
        data = density_of_atoms(atoms, box, pixel_size, b_factor=self.model_b_factor_A2, solvent=self.solvent)
        if not self.model:
            return Volume(data, pixel_size, NOWHERE)
        # the model's centre of mass is on the voxel n // 2: so the map lies on the model
        x, y, z = (float(v) - pixel_size * (box // 2) for v in atoms.centre_of_mass())
        return Volume(data, pixel_size, (x, y, z))

    def _simulate(self, volume: Volume, url: str, context: Context, whole: bool) -> None:
        """Write the particles, unless a run that was interrupted has done so, and the truth."""
        from cloudem.algorithms.simulate import POSE_COLUMNS, Simulator, random_particles
        from cloudem.io.particle_store import write_particles
        from cloudem.io.storage.groups import write_group
        from cloudem.io.storage.tables import table_to_arrays

        recording = self.recording()
        truth = random_particles(self.count, recording, self.seed)
        table = truth.without_columns((*POSE_COLUMNS, "half_set")) if self.blind else truth
        with context.progress.stage("particles", total=self.count) as stage:
            simulator = Simulator(volume.data, volume.pixel_size, truth, recording, self.seed)

            def batches() -> Any:
                for images in simulator.images():
                    yield images
                    stage.advance(len(images))

            attributes = {**job_record(self), "density_scale": simulator.scale}
            if not whole:
                write_particles(
                    url,
                    table,
                    batches(),
                    box=simulator.box,
                    pixel_size=volume.pixel_size,
                    dtype=self.dtype,
                    attributes=attributes,
                    guard=context.check,
                )
        write_group(url, "truth", *table_to_arrays(truth), guard=context.check)
        context.progress.message(
            f"{self.count} particles of {simulator.box} px in {url}; the truth is in its group truth"
        )

    def recording(self) -> Recording:
        """Return the parameters in cloudem's own units."""
        from cloudem.algorithms.simulate import Recording, anisotropic

        return Recording(
            beam_tilt=(self.beam_tilt_x_mrad, self.beam_tilt_y_mrad),
            odd_zernike=coefficients(self.odd_zernike_rad, "--odd-zernike-rad"),
            even_zernike=coefficients(self.even_zernike_rad, "--even-zernike-rad"),
            magnification=anisotropic(self.anisotropy, math.radians(self.anisotropy_angle_deg)),
            shift_sigma=self.shift_sigma_A,
            defocus_min=self.defocus_min_A,
            defocus_max=self.defocus_max_A,
            astigmatism=self.astigmatism_A,
            per_micrograph=self.particles_per_micrograph,
            voltage=self.voltage_kV,
            spherical_aberration=self.cs_mm * 1e7,
            amplitude_contrast=self.amplitude_contrast,
            snr=self.snr if self.noise else None,
            noise_ratio=self.noise_ratio,
            noise_length=self.noise_length_A,
            b_factor=self.b_factor_A2,
            dose=self.dose_e_per_A2,
        )
