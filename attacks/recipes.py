"""The base attacks of the field, as compositions with the papers' defaults.

Unless a paper says otherwise: l_inf, eps 8/255, 10 steps of eps/10, cross-entropy, clean start,
and mean logits when several surrogates are given. Attacks that change the input or the estimate
(DI, TI, SI, Admix, SSA, BSR, VMI, PGN) are published on top of momentum, so they have it here.
"""

from __future__ import annotations

from advens.attacks.attack import ComposedAttack
from advens.attacks.estimators.decowa import DeCoWA as DeCoWAEstimator
from advens.attacks.estimators.dta import DTA as DTAEstimator
from advens.attacks.estimators.emi import EMI
from advens.attacks.estimators.fgsra import FGSRA as FGSRAEstimator
from advens.attacks.estimators.gnp import GNP as GNPEstimator
from advens.attacks.estimators.gra import GRA as GRAEstimator
from advens.attacks.estimators.ie import IE
from advens.attacks.estimators.integrated import Integrated
from advens.attacks.estimators.mef import MEF as MEFEstimator
from advens.attacks.estimators.mumodig import MuMoDIG
from advens.attacks.estimators.pgn import PGN as PGNEstimator
from advens.attacks.estimators.rap import RAP as RAPEstimator
from advens.attacks.estimators.vmi import VMI
from advens.attacks.estimators.walk import Walk
from advens.attacks.filters import TI
from advens.attacks.fusions import EnsLogits as LogitFusion
from advens.attacks.fusions import EnsLoss as LossFusion
from advens.attacks.fusions import EnsProbs as ProbFusion
from advens.attacks.interfaces import Loss, Update
from advens.attacks.losses import CalibratedByMargin, PoincareTriplet, Probability, TargetLogit
from advens.attacks.registry import recipe
from advens.attacks.starts import Uniform
from advens.attacks.steps import Adam, StepSize
from advens.attacks.transforms.admix import Admix as AdmixTransform
from advens.attacks.transforms.bsr import BSR as BSRTransform
from advens.attacks.transforms.dem import DEM as DEMTransform
from advens.attacks.transforms.di import DI
from advens.attacks.transforms.l2t import L2T as L2TTransform
from advens.attacks.transforms.maskblock import MaskBlock as MaskBlockTransform
from advens.attacks.transforms.mfi import MFI as MFITransform
from advens.attacks.transforms.ops import OPS as OPSTransform
from advens.attacks.transforms.shifts import Shifts
from advens.attacks.transforms.si import SI
from advens.attacks.transforms.sia import SIA as SIATransform
from advens.attacks.transforms.ssa import SSA as SSATransform
from advens.attacks.transforms.ssm import SSMH, SSMP
from advens.attacks.transforms.us_mm import USMM as USMMTransform
from advens.attacks.updates import MI, NI, Sum
from advens.attacks.updates.aifgtm import AIFGTM as AIFGTMUpdate
from advens.attacks.updates.decay import DecayMI
from advens.attacks.updates.fgrm import FGRM
from advens.attacks.updates.pi import PI
from advens.attacks.updates.staircase import Staircase


@recipe("fgsm", family="gradient", paper="Goodfellow et al., ICLR 2015", year=2015)
def FGSM() -> ComposedAttack:
    """One step of length eps along the sign of the gradient."""
    return ComposedAttack(steps=1)


@recipe("ifgsm", family="gradient", paper="Kurakin et al., ICLR workshop 2017", year=2017)
def IFGSM() -> ComposedAttack:
    """Iterated FGSM from the clean image."""
    return ComposedAttack()


@recipe("pgd", family="gradient", norms=("linf", "l2", "l1"), paper="Madry et al., ICLR 2018", year=2018)
def PGD() -> ComposedAttack:
    """Iterated FGSM from a uniform point of the ball."""
    return ComposedAttack(start=Uniform())


@recipe("mifgsm", family="gradient", paper="Dong et al., CVPR 2018", year=2018)
def MIFGSM() -> ComposedAttack:
    """Iterated FGSM with momentum."""
    return ComposedAttack(update=MI())


@recipe("nifgsm", family="gradient", paper="Lin et al., ICLR 2020", year=2020)
def NIFGSM() -> ComposedAttack:
    """Iterated FGSM with Nesterov momentum."""
    return ComposedAttack(update=NI())


@recipe("vmifgsm", family="gradient", paper="Wang & He, CVPR 2021", year=2021)
def VMIFGSM() -> ComposedAttack:
    """Momentum with variance tuning: the last step's neighbourhood corrects this step's gradient."""
    return ComposedAttack(update=MI(), estimator=VMI())


@recipe("pgn", family="gradient", paper="Ge et al., NeurIPS 2023", year=2023)
def PGN() -> ComposedAttack:
    """Momentum on gradients that penalise a large gradient norm, averaged over neighbours."""
    return ComposedAttack(update=MI(), estimator=PGNEstimator())


@recipe("vnifgsm", family="gradient", paper="Wang & He, CVPR 2021", year=2021)
def VNIFGSM() -> ComposedAttack:
    """Nesterov momentum with variance tuning.

    Neighbours lie around the look-ahead point, where the gradient they correct is taken. The authors' code
    has them around x', and a port around x' moved by the momentum that has this step's gradient already.
    """
    return ComposedAttack(update=NI(), estimator=VMI())


@recipe("emifgsm", family="gradient", paper="Wang et al., BMVC 2021", year=2021)
def EMIFGSM() -> ComposedAttack:
    """Momentum on the mean gradient along the last step's gradient."""
    return ComposedAttack(update=MI(), estimator=EMI())


@recipe("gifgsm", family="gradient", paper="Wang et al., 2022 (GI-FGSM), arXiv 2211.11236", year=2022)
def GIFGSM() -> ComposedAttack:
    """Momentum that starts as five steps, ten times as long and forgotten, have left it."""
    return ComposedAttack(update=MI(), warm_up=5)


@recipe("iefgsm", family="gradient", paper="Peng et al., ICASSP 2023", year=2023)
def IEFGSM() -> ComposedAttack:
    """Momentum on the mean of the unit gradients here and a step ahead."""
    return ComposedAttack(update=Sum(), estimator=IE())


@recipe("pifgsm", family="gradient", norms=("linf",), paper="Gao et al., ECCV 2020", year=2020)
def PIFGSM() -> ComposedAttack:
    """Steps ten times as long; what leaves the ball moves the pixels around."""
    return ComposedAttack(update=PI())


@recipe("gra", family="gradient", norms=("linf",), paper="Zhu et al., ICCV 2023", year=2023)
def GRA() -> ComposedAttack:
    """The gradient and its neighbours' mean, mixed by their cosine; steps shrink where signs turn."""
    return ComposedAttack(update=DecayMI(), estimator=GRAEstimator())


@recipe("mef", family="gradient", paper="Qiu et al., 2024 (MEF), arXiv 2405.16181", year=2024)
def MEF() -> ComposedAttack:
    """Momentum 0.5 on neighbours that keep directions of their own; 20 steps of eps/10."""
    return ComposedAttack(update=MI(mu=0.5), estimator=MEFEstimator(), steps=20, step_size=StepSize("eps/10"))


@recipe("anda", family="gradient", paper="Fang et al., CVPR 2024", year=2024)
def ANDA() -> ComposedAttack:
    """The sum of the gradients of 25 shifted images and of all steps, as they are."""
    return ComposedAttack(update=Sum(), transforms=(Shifts(),))


@recipe("rap", family="gradient", paper="Qin et al., NeurIPS 2022", year=2022)
def RAP() -> ComposedAttack:
    """Momentum on gradients at the worst point around; 400 steps of eps/8, the last 300 with the search."""
    late = RAPEstimator(late=100)
    return ComposedAttack(update=MI(), estimator=late, steps=400, step_size=StepSize("eps/8"))


@recipe("mig", family="gradient", paper="Ma et al., ICCV 2023", year=2023)
def MIG() -> ComposedAttack:
    """Momentum on integrated gradients of the label's probability; 25 steps."""
    return ComposedAttack(update=MI(), estimator=Integrated(), loss=Probability(), steps=25)


@recipe("gnp", family="gradient", paper="Wu et al., ICIP 2023", year=2023)
def GNP() -> ComposedAttack:
    """Momentum on gradients that penalise the gradient's norm."""
    return ComposedAttack(update=MI(), estimator=GNPEstimator())


@recipe("fgsra", family="gradient", norms=("linf",), paper="Wang et al., CIKM 2024", year=2024)
def FGSRA() -> ComposedAttack:
    """The gradient and those of disturbed spectra, mixed by their cosine; steps shrink where signs turn."""
    return ComposedAttack(update=DecayMI(against="gradient"), estimator=FGSRAEstimator())


@recipe("mumodig", symbol="MuMoDIG", family="gradient", paper="Ren et al., AAAI 2025", year=2025)
def MuMoDIGAttack() -> ComposedAttack:
    """Momentum on integrated gradients from quantised images, of the image and six views of it."""
    return ComposedAttack(update=MI(), estimator=MuMoDIG())


@recipe(
    "smi-fgrm", symbol="SMIFGRM", family="gradient", norms=("linf",),
    paper="Han et al., 2023 (SMI-FGRM), arXiv 2307.02828", year=2023,
)  # fmt: skip
def RandomWalk() -> ComposedAttack:
    """Momentum on gradients along a random walk; rescaled instead of its sign."""
    return ComposedAttack(update=FGRM(), estimator=Walk())


@recipe(
    "ai-fgtm", symbol="AIFGTM", family="gradient", norms=("linf",), paper="Zou et al., AAAI 2022", year=2022
)  # fmt: skip
def AdamTanh() -> ComposedAttack:
    """The hyperbolic tangent of Adam's direction, in steps that grow."""
    return ComposedAttack(update=AIFGTMUpdate(), step_size=Adam())


@recipe(
    "ifgs2m", family="gradient", norms=("linf",),
    paper="Gao et al., 2021 (I-FGS2M), arXiv 2104.09722", year=2021,
)  # fmt: skip
def IFGS2M() -> ComposedAttack:
    """Iterated FGSM whose steps are longer where the gradient is larger."""
    return ComposedAttack(update=Staircase())


@recipe("taig-s", symbol="TAIGS", family="gradient", paper="Huang & Kong, ICLR 2022", year=2022)
def TAIGStraight() -> ComposedAttack:
    """Signs of integrated gradients of the label's logit, along a straight line from a black image."""
    return ComposedAttack(estimator=Integrated(black=True), loss=TargetLogit())


@recipe("taig-r", symbol="TAIGR", family="gradient", paper="Huang & Kong, ICLR 2022", year=2022)
def TAIGRandom() -> ComposedAttack:
    """TAIG-S with noise of eps at every point of the line."""
    return ComposedAttack(estimator=Integrated(black=True, noise=1.0), loss=TargetLogit())


@recipe("dta", family="gradient", paper="Yang et al., 2023 (DTA), arXiv 2303.15109", year=2023)
def DTA() -> ComposedAttack:
    """Momentum on the mean momentum of ten short steps."""
    return ComposedAttack(update=Sum(), estimator=DTAEstimator())


@recipe("difgsm", family="input", paper="Xie et al., CVPR 2019", year=2019)
def DIFGSM() -> ComposedAttack:
    """Momentum on randomly resized and padded images."""
    return ComposedAttack(update=MI(), transforms=(DI(),))


@recipe("tifgsm", family="input", paper="Dong et al., CVPR 2019", year=2019)
def TIFGSM() -> ComposedAttack:
    """Momentum on gradients smoothed by a gaussian."""
    return ComposedAttack(update=MI(), filters=(TI(),))


@recipe("sifgsm", family="input", paper="Lin et al., ICLR 2020", year=2020)
def SIFGSM() -> ComposedAttack:
    """Momentum on five scales of the image."""
    return ComposedAttack(update=MI(), transforms=(SI(),))


@recipe("admix", family="input", paper="Wang et al., ICCV 2021", year=2021, couples="shard")
def Admix() -> ComposedAttack:
    """Momentum on images with a little of other images mixed in, at five scales."""
    return ComposedAttack(update=MI(), transforms=(AdmixTransform(),))


@recipe("ssa", family="input", paper="Long et al., ECCV 2022", year=2022)
def SSA() -> ComposedAttack:
    """Momentum on images with a disturbed spectrum."""
    return ComposedAttack(update=MI(), transforms=(SSATransform(),))


@recipe("bsr", family="input", paper="Wang et al., CVPR 2024", year=2024)
def BSR() -> ComposedAttack:
    """Momentum on images whose blocks are shuffled and rotated."""
    return ComposedAttack(update=MI(), transforms=(BSRTransform(),))


@recipe("sia", family="input", paper="Wang et al., ICCV 2023", year=2023)
def SIA() -> ComposedAttack:
    """Momentum on images whose blocks are transformed each in its own way."""
    return ComposedAttack(update=MI(), transforms=(SIATransform(),))


@recipe("logit", symbol="Logit", family="targeted", paper="Zhao et al., NeurIPS 2021", year=2021)
def LogitAttack() -> ComposedAttack:
    """The target's logit, diverse inputs, TI of 5 pixels and the sum of gradients; 300 steps of eps/8.

    The attack is published for targets; without them it descends the label's logit.
    """
    return _to_targets(Sum(), TargetLogit())


@recipe("logit-margin", symbol="LogitMargin", family="targeted", paper="Weng et al., TIFS 2023", year=2023)
def LogitMarginAttack() -> ComposedAttack:
    """Cross-entropy of logits over their margin, diverse inputs, TI of 5 pixels, momentum; 300 steps.

    The paper has two more calibrations: by a temperature (the loss `logit-temperature`), and by the angle
    between features and the classifier's weights (the change `angle`).
    """
    return _to_targets(MI(), CalibratedByMargin())


@recipe(
    "po-trip", symbol="PoTrip", family="targeted", untargeted=False, paper="Li et al., CVPR 2020", year=2020
)  # fmt: skip
def PoTripAttack() -> ComposedAttack:
    """Poincaré distance to the target and a triplet loss, DI, TI, the sum of gradients; 20 steps."""
    return _to_targets(Sum(), PoincareTriplet(), steps=20, alpha="eps/20")


def _to_targets(update: Update, loss: Loss, steps: int = 300, alpha: str = "eps/8") -> ComposedAttack:
    """What attacks on targets share: DI and TI, and many steps; of 2/255 where eps is 16/255."""
    return ComposedAttack(
        update=update, loss=loss, transforms=(DI(p=0.7),), filters=(TI(size=5),), steps=steps,
        step_size=StepSize(alpha),
    )  # fmt: skip


@recipe(
    "us-mm", family="input", paper="Wang et al., 2023 (US-MM), arXiv 2311.12051", year=2023, couples="shard"
)  # fmt: skip
def USMM() -> ComposedAttack:
    """Momentum on images at evenly spaced scales, under masks made of other images."""
    return ComposedAttack(update=MI(), transforms=(USMMTransform(),))


@recipe("dem", family="input", paper="Zou et al., ECCV 2020", year=2020)
def DEM() -> ComposedAttack:
    """Momentum on the mean logits of five enlarged images, in steps of eps.

    After such a step every value is as it was in the clean image or eps away, which the paper calls region
    fitting; ``step_size="eps/T"`` takes the usual steps, and shows what the long ones are worth.
    """
    return ComposedAttack(update=MI(), transforms=(DEMTransform(),), step_size=StepSize("eps"))


@recipe("decowa", family="input", paper="Lin et al., AAAI 2024", year=2024, couples="option")
def DeCoWA() -> ComposedAttack:
    """Momentum on images under random warps that hide the attack."""
    return ComposedAttack(update=MI(), estimator=DeCoWAEstimator())


@recipe("ops", family="input", paper="Guo et al., CVPR 2025", year=2025)
def OPS() -> ComposedAttack:
    """Momentum on noisy images under random compositions of operators; 21 passes a step, 901 published."""
    return ComposedAttack(update=MI(), transforms=(OPSTransform(),))


@recipe("ssm-h", symbol="SSMH", family="input", paper="Zhang et al., 2024, arXiv 2401.08734", year=2024)
def HighSpectrum() -> ComposedAttack:
    """SSA that keeps the lowest frequencies as they are."""
    return ComposedAttack(update=MI(), transforms=(SSMH(),))


@recipe("ssm-p", symbol="SSMP", family="input", paper="Zhang et al., 2024, arXiv 2401.08734", year=2024)
def BlockSpectrum() -> ComposedAttack:
    """Momentum on images with blocks of the spectrum scaled, disturbed or dropped."""
    return ComposedAttack(update=MI(), transforms=(SSMP(),))


@recipe("mfi", family="input", paper="Qian et al., TIFS 2024", year=2024, couples="shard")
def MFI() -> ComposedAttack:
    """Momentum on noisy images with high frequencies of other images, at five scales."""
    return ComposedAttack(update=MI(), transforms=(MFITransform(),))


@recipe("maskblock", family="input", paper="Fan et al., 2022, arXiv 2208.06538", year=2022)
def MaskBlock() -> ComposedAttack:
    """Momentum on images with one block left out."""
    return ComposedAttack(update=MI(), transforms=(MaskBlockTransform(),))


@recipe("l2t", family="input", paper="Zhu et al., CVPR 2024", year=2024, couples="shard")
def L2T() -> ComposedAttack:
    """Momentum on views under pairs of operators, drawn by scores that follow the loss; 102 passes a step."""
    return ComposedAttack(update=MI(), transforms=(L2TTransform(),))


@recipe("ens-logits", family="fusion", paper="Dong et al., CVPR 2018", year=2018)
def EnsLogits() -> ComposedAttack:
    """Uniform fusion of logits: the baseline every ensemble attack must beat."""
    return ComposedAttack(fusion=LogitFusion())


@recipe("ens-probs", family="fusion", paper="Liu et al., ICLR 2017", year=2017)
def EnsProbs() -> ComposedAttack:
    """Uniform fusion of probabilities."""
    return ComposedAttack(fusion=ProbFusion())


@recipe("ens-loss", family="fusion", paper="Dong et al., CVPR 2018", year=2018)
def EnsLoss() -> ComposedAttack:
    """Uniform fusion of losses; memory of one surrogate."""
    return ComposedAttack(fusion=LossFusion())
